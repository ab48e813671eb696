"""`Router` for programs, and the way from `RouterArgs` to the Rust class of the same name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, cast

from ._launcher.parent import stop_with_parent
from .router_args import RouterArgs, keyword_fields
from .sgl_model_gateway_rs import (
    BackendType,
    HistoryBackendType,
    PolicyType,
    PyApiKeyEntry,
    PyControlPlaneAuthConfig,
    PyJwtConfig,
    PyOracleConfig,
    PyPostgresConfig,
    PyRedisConfig,
    PyRole,
    check_config,
)
from .sgl_model_gateway_rs import Router as _Router

__all__ = [
    "BackendType",
    "HistoryBackendType",
    "PolicyType",
    "PyApiKeyEntry",
    "PyControlPlaneAuthConfig",
    "PyJwtConfig",
    "PyOracleConfig",
    "PyPostgresConfig",
    "PyRedisConfig",
    "PyRole",
    "Router",
    "backend_from_str",
    "build_control_plane_auth_config",
    "history_backend_from_str",
    "policy_from_str",
    "role_from_str",
]

logger = logging.getLogger(__name__)

_Member = TypeVar("_Member", BackendType, HistoryBackendType)


def policy_from_str(name: str | PolicyType | None) -> PolicyType | None:
    """The policy of this name.

    Args:
        name: a name as `--policy` takes it, a member, or `None`, which stays `None`.

    Raises:
        KeyError: no policy has this name.
    """
    return name if name is None or isinstance(name, PolicyType) else PolicyType.members()[name]


def backend_from_str(name: str | BackendType | None) -> BackendType:
    """The backend of this name.

    Args:
        name: a name as `--backend` takes it, in any case, or a member; `None` means `Sglang`.

    Raises:
        ValueError: no backend has this name.
    """
    return _member("backend", name, BackendType.members(), BackendType.Sglang)


def history_backend_from_str(name: str | HistoryBackendType | None) -> HistoryBackendType:
    """The history backend of this name.

    Args:
        name: a name as `--history-backend` takes it, in any case, or a member; `None` means `Memory`.

    Raises:
        ValueError: no history backend has this name.
    """
    return _member("history backend", name, HistoryBackendType.members(), HistoryBackendType.Memory)


def _member(what: str, name: str | _Member | None, members: Mapping[str, _Member], default: _Member) -> _Member:
    if name is None:
        return default
    if not isinstance(name, str):
        return name
    try:
        return members[name.lower()]
    except KeyError:
        raise ValueError(f"Unknown {what}: {name}. Valid options: {', '.join(members)}") from None


def role_from_str(name: str) -> PyRole:
    """The role of this name: `Admin` for "admin" in any case, `User` for everything else.

    Raises:
        AttributeError: `name` is not a string.
    """
    return PyRole.Admin if name.lower() == "admin" else PyRole.User


def build_control_plane_auth_config(args: Mapping[str, Any]) -> PyControlPlaneAuthConfig | None:
    """The rights of the admin API.

    Args:
        args: options by the names of `RouterArgs`: `control_plane_api_keys` as `(id, name, key, role)` each,
            `control_plane_audit_enabled`, `jwt_issuer`, `jwt_audience`, `jwt_jwks_uri`, `jwt_role_mapping`,
            `jwt_role_claim`. Missing ones count as unset.

    Returns:
        The configuration, `None` when neither keys nor tokens are configured.
    """
    api_keys = [
        PyApiKeyEntry(id=identifier, name=name, key=key, role=role_from_str(role))
        for identifier, name, key, role in args.get("control_plane_api_keys") or ()
    ]
    jwt = _jwt(args)
    audit = bool(args.get("control_plane_audit_enabled"))
    if not api_keys and jwt is None:
        if audit:
            logger.warning("control_plane_audit_enabled has no effect without API keys or JWT; audit_log has")
        return None
    return PyControlPlaneAuthConfig(jwt=jwt, api_keys=api_keys, audit_enabled=audit)


def _jwt(args: Mapping[str, Any]) -> PyJwtConfig | None:
    issuer, audience = args.get("jwt_issuer"), args.get("jwt_audience")
    if issuer and audience:
        return PyJwtConfig(
            issuer=issuer,
            audience=audience,
            jwks_uri=args.get("jwt_jwks_uri"),
            role_mapping=args.get("jwt_role_mapping") or {},
            role_claim=args.get("jwt_role_claim") or "roles",
        )
    if issuer or audience or args.get("jwt_jwks_uri") or args.get("jwt_role_mapping"):
        logger.warning("JWT is not used: jwt_issuer/jwt_audience missing, both are needed")
    return None


def _refuse_half_jwt(args: RouterArgs) -> None:
    """Options of tokens without an issuer and its audience would leave the control plane open.

    Raises:
        ValueError: one is set and not the other, or neither.
    """
    for name in ("jwt_issuer", "jwt_audience", "jwt_jwks_uri", "jwt_role_mapping"):
        if getattr(args, name) and not (args.jwt_issuer and args.jwt_audience):
            raise ValueError(f"option '{name}' needs jwt_issuer and jwt_audience, both of them")


def _keywords(args: RouterArgs) -> dict[str, Any]:
    """`RouterArgs` as keywords of the Rust class. The caller's object stays as it is."""
    _refuse_half_jwt(args)
    keywords = {name: getattr(args, name) for name in keyword_fields()}
    if args.service_discovery and args.worker_urls:
        logger.warning(
            "worker_urls are not used with service_discovery; POST /workers adds workers beside discovered ones"
        )
    if args.service_discovery or args.pd_disaggregation:
        keywords["worker_urls"] = []
    if not args.pd_disaggregation:
        keywords["prefill_urls"] = keywords["decode_urls"] = None
    for name in ("policy", "prefill_policy", "decode_policy"):
        keywords[name] = policy_from_str(keywords[name])
    keywords["backend"] = backend_from_str(args.backend)
    keywords["history_backend"] = history_backend_from_str(args.history_backend)
    return (
        keywords
        | _stores(args, keywords["history_backend"])
        | {"control_plane_auth": build_control_plane_auth_config(vars(args))}
    )


def _given(args: RouterArgs) -> set[str]:
    """The keywords that win over a configuration file."""
    given = args.given()
    objects = {
        "control_plane_auth": ("control_plane_", "jwt_"),
        "oracle_config": ("oracle_",),
        "postgres_config": ("postgres_",),
        "redis_config": ("redis_",),
    }
    made = {name for name, starts in objects.items() if any(field.startswith(starts) for field in given)}
    return given & set(keyword_fields()) | made


def check_file(args: RouterArgs) -> None:
    """Checks `args.config` together with the other options. Nothing is opened or connected to.

    Raises:
        ValueError: a line for each mistake, with its place in the file.
        TypeError: an option of the wrong type.
    """
    check_config(_keywords(args), sorted(_given(args)))


def _stores(args: RouterArgs, selected: HistoryBackendType) -> dict[str, Any]:
    """The configuration of the selected history store, `None` for the others."""
    stores: dict[str, Any] = dict.fromkeys(("oracle_config", "postgres_config", "redis_config"))
    if selected == HistoryBackendType.Oracle:
        stores["oracle_config"] = PyOracleConfig(
            password=args.oracle_password,
            username=args.oracle_username,
            connect_descriptor=args.oracle_tns_alias or args.oracle_connect_descriptor,
            wallet_path=args.oracle_wallet_path,
            pool_min=args.oracle_pool_min,
            pool_max=args.oracle_pool_max,
            pool_timeout_secs=args.oracle_pool_timeout_secs,
        )
    elif selected == HistoryBackendType.Postgres:
        stores["postgres_config"] = PyPostgresConfig(db_url=args.postgres_db_url, pool_max=args.postgres_pool_max)
    elif selected == HistoryBackendType.Redis:
        days = args.redis_retention_days
        stores["redis_config"] = PyRedisConfig(
            url=args.redis_url,  # type: ignore[arg-type]  # the class itself refuses None
            pool_max=args.redis_pool_max,
            retention_days=None if days is None or days < 0 else days,
        )
    return stores


class Router:
    """A gateway in this process.

    Usage:

        with Router(worker_urls=["http://gpu-1:30000"], policy="round_robin", port=0) as gateway:
            print(gateway.url)

    Every option of `RouterArgs` that the Rust class takes is a keyword, and an attribute afterwards;
    `inspect.signature(Router)` lists them with their defaults.

    Args:
        router: a Rust router to wrap, alone; or `worker_urls`, the first option by position.
        args: further options by position.
        keywords: options by name.

    Raises:
        TypeError: an unknown option, an option of the wrong type, or no `worker_urls`.
        ValueError: an option that cannot work; `OptionRangeError`, a number out of its range.
    """

    __signature__ = _Router.__signature__

    def __init__(self, router: _Router | Sequence[str] | None = None, /, *args: Any, **keywords: Any) -> None:
        if isinstance(router, (list, tuple)):  # worker_urls by position
            router, args = None, (router, *args)
        if router is not None and (args or keywords):
            raise TypeError("Router() takes options or a Rust router, not both")
        # Upstream's tests pass stand-ins for the Rust class.
        self._router = _Router(*args, **keywords) if router is None else cast("_Router", router)

    @staticmethod
    def from_args(args: RouterArgs) -> Router:
        """A router with these options.

        Args:
            args: the options; stays as it is.

        Raises:
            TypeError: an option of the wrong type.
            ValueError: an option that cannot work.
            KeyError: an unknown policy.
        """
        keywords = _keywords(args)
        configured = getattr(_Router, "_configured", None) if isinstance(_Router, type) else None
        if configured is None:  # upstream's tests put a stand-in in its place
            return Router(_Router(**keywords))
        return Router(configured(keywords, sorted(_given(args))))

    def start(self) -> None:
        """Serves until SIGINT, SIGTERM, SIGQUIT, SIGHUP (in the main thread) or `stop()`.

        The first of them lets requests in flight finish, the second ends them. With a configuration file SIGHUP reads
        it again instead. SIGHUP that is ignored (`nohup`) stays ignored. In a child of `multiprocessing` the end of
        the parent is a stop, too.

        Raises:
            RuntimeError: the port is in use, or the router runs already.
        """
        stop_with_parent(self.stop)
        self._router.start()

    def start_background(self) -> Router:
        """Starts serving and returns this router at once.

        Raises:
            RuntimeError: the port is in use, or the router runs already.
        """
        stop_with_parent(self.stop)
        self._router.start_background()
        return self

    def reload(self) -> bool:
        """Has the configuration file read again; returns at once, the log says what came of it.

        Returns:
            Whether there is a file.

        Raises:
            RuntimeError: the router is not running.
        """
        return self._router.reload()

    def stop(self, timeout: float | None = 0.0) -> bool:
        """Lets requests in flight finish and stops; a second call ends them. From any thread.

        Args:
            timeout: longest wait for the end, seconds; `None` waits as long as it takes.

        Returns:
            Whether everything has stopped.
        """
        return self._router.stop(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end without causing it.

        Args:
            timeout: longest wait, seconds; `None` waits as long as it takes.

        Returns:
            Whether everything has stopped.
        """
        return self._router.wait(timeout)

    @property
    def running(self) -> bool:
        """Whether it is serving or draining."""
        return self._router.running

    @property
    def url(self) -> str:
        """Base URL of the gateway that works on this machine, `http://host:port`; `https://` with a certificate."""
        return self._router.url

    @property
    def metrics_url(self) -> str | None:
        """Base URL of the metrics listener; `None` without one."""
        return self._router.metrics_url

    def __enter__(self) -> Router:
        stop_with_parent(self.stop)
        self._router.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._router.__exit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        # Options read as attributes. Dunder and private names are not options, and `_router` may not be there yet.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._router, name)

    def __repr__(self) -> str:
        return repr(self._router)
