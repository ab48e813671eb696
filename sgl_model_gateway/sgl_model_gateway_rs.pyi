"""Types of the extension module; `make lint` checks them against the real one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Signature
from os import PathLike
from types import TracebackType
from typing import Any, ClassVar, final

from typing_extensions import Self

__all__ = [
    "ApiKeyEntry",
    "BackendType",
    "ControlPlaneAuthConfig",
    "FleetTrace",
    "HistoryBackendType",
    "JwtConfig",
    "OptionRangeError",
    "OracleConfig",
    "PolicyType",
    "PostgresConfig",
    "PyApiKeyEntry",
    "PyControlPlaneAuthConfig",
    "PyJwtConfig",
    "PyOracleConfig",
    "PyPostgresConfig",
    "PyRedisConfig",
    "PyRole",
    "RedisConfig",
    "Role",
    "Router",
    "RoutingLease",
    "RoutingPolicy",
    "SimWorker",
    "__version__",
    "_close_log",
    "check_config",
    "config_schema",
    "constructor_defaults",
    "fleet_option_defaults",
    "fleet_policies",
    "get_available_tool_call_parsers",
    "get_verbose_version_string",
    "get_version_string",
    "option_choices",
    "option_defaults",
    "option_names",
    "routes",
    "routing_option_defaults",
    "sim_option_defaults",
    "simulate_fleet",
]

# The members of enums come from Rust. A type checker cannot ask the extension, so they stand here, too; `make fmt`
# writes them (py_test/unit/test_stub.py), and both `make lint` and the tests say when one is missing.

__version__: str

def _close_log() -> None: ...

class OptionRangeError(ValueError, OverflowError): ...

@final
class PolicyType:
    Random: ClassVar[PolicyType]
    RoundRobin: ClassVar[PolicyType]
    CacheAware: ClassVar[PolicyType]
    PowerOfTwo: ClassVar[PolicyType]
    Bucket: ClassVar[PolicyType]
    Manual: ClassVar[PolicyType]
    ConsistentHashing: ClassVar[PolicyType]
    PrefixHash: ClassVar[PolicyType]
    LeastLoad: ClassVar[PolicyType]
    @staticmethod
    def members() -> dict[str, PolicyType]: ...
    def __int__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class BackendType:
    Sglang: ClassVar[BackendType]
    Openai: ClassVar[BackendType]
    @staticmethod
    def members() -> dict[str, BackendType]: ...
    def __int__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class HistoryBackendType:
    # The member `None` cannot be spelt here; it is reached with getattr.
    Memory: ClassVar[HistoryBackendType]
    Oracle: ClassVar[HistoryBackendType]
    Postgres: ClassVar[HistoryBackendType]
    Redis: ClassVar[HistoryBackendType]
    @staticmethod
    def members() -> dict[str, HistoryBackendType]: ...
    def __int__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class PyRole:
    Admin: ClassVar[PyRole]
    User: ClassVar[PyRole]
    @staticmethod
    def members() -> dict[str, PyRole]: ...
    def __int__(self) -> int: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...

@final
class PyApiKeyEntry:
    id: str
    name: str
    key: str
    role: PyRole
    def __new__(cls, id: str, name: str, key: str, role: PyRole = ...) -> Self: ...

@final
class PyJwtConfig:
    issuer: str
    audience: str
    jwks_uri: str | None
    role_mapping: dict[str, str]
    role_claim: str
    def __new__(
        cls,
        issuer: str,
        audience: str,
        jwks_uri: str | None = None,
        role_mapping: Mapping[str, str] = ...,
        role_claim: str = ...,
    ) -> Self: ...

@final
class PyControlPlaneAuthConfig:
    jwt: PyJwtConfig | None
    api_keys: list[PyApiKeyEntry]
    audit_enabled: bool
    def __new__(
        cls, jwt: PyJwtConfig | None = None, api_keys: Sequence[PyApiKeyEntry] = ..., audit_enabled: bool = True
    ) -> Self: ...

@final
class PyOracleConfig:
    password: str | None
    username: str | None
    connect_descriptor: str | None
    wallet_path: str | None
    pool_min: int
    pool_max: int
    pool_timeout_secs: int
    def __new__(
        cls,
        password: str | None = None,
        username: str | None = None,
        connect_descriptor: str | None = None,
        wallet_path: str | None = None,
        pool_min: int = 1,
        pool_max: int = 16,
        pool_timeout_secs: int = 30,
    ) -> Self: ...

@final
class PyPostgresConfig:
    db_url: str | None
    pool_max: int
    def __new__(cls, db_url: str | None = None, pool_max: int = 16) -> Self: ...

@final
class PyRedisConfig:
    url: str
    pool_max: int
    retention_days: int | None
    def __new__(cls, url: str, pool_max: int = 16, retention_days: int | None = ...) -> Self: ...

Role = PyRole
ApiKeyEntry = PyApiKeyEntry
JwtConfig = PyJwtConfig
ControlPlaneAuthConfig = PyControlPlaneAuthConfig
OracleConfig = PyOracleConfig
PostgresConfig = PyPostgresConfig
RedisConfig = PyRedisConfig

@final
class Router:
    # Every option by position or keyword; `inspect.signature(Router)` lists them.
    __signature__: ClassVar[Signature]
    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def start(self) -> None: ...
    def start_background(self) -> Router: ...
    def suspect(self, worker_url: str) -> bool: ...
    def reload(self) -> bool: ...
    @classmethod
    def _configured(cls, keywords: dict[str, Any], given: list[str]) -> Router: ...
    def stop(self, timeout: float | None = 0.0) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    @property
    def running(self) -> bool: ...
    @property
    def url(self) -> str: ...
    @property
    def metrics_url(self) -> str | None: ...
    def __enter__(self) -> Router: ...
    def __exit__(
        self, _class: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> bool: ...
    def __getattr__(self, name: str, /) -> Any: ...
    def __dir__(self) -> list[str]: ...

@final
class SimWorker:
    # The options of `sim_option_defaults()` as keywords.
    def __new__(cls, **kwargs: Any) -> Self: ...
    def start(self) -> None: ...
    def start_background(self) -> SimWorker: ...
    def stop(self, timeout: float | None = 0.0) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    @property
    def running(self) -> bool: ...
    @property
    def url(self) -> str: ...
    @property
    def bootstrap_port(self) -> int | None: ...
    @property
    def failure(self) -> str | None: ...
    def __enter__(self) -> SimWorker: ...
    def __exit__(
        self, _class: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> bool: ...

@final
class FleetTrace:
    def __new__(cls, path: str | PathLike[str], limit: int | None = None) -> Self: ...
    @property
    def was_sorted(self) -> bool: ...
    @property
    def span_secs(self) -> float: ...
    def __len__(self) -> int: ...

@final
class RoutingLease:
    # Made by `RoutingPolicy.route` alone.
    @property
    def worker(self) -> str: ...
    @property
    def matched_tokens(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def released(self) -> bool: ...
    def first_token(self) -> None: ...
    def release(self) -> None: ...
    def __enter__(self) -> RoutingLease: ...
    def __exit__(
        self, _class: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> bool: ...

@final
class RoutingPolicy:
    # The tunables of `routing_option_defaults()` as keywords.
    def __new__(cls, policy: str = "cache_aware", **tunables: Any) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def workers(self) -> list[str]: ...
    def add_worker(self, url: str) -> None: ...
    def remove_worker(self, url: str) -> None: ...
    def set_ready(self, url: str, ready: bool) -> None: ...
    def flush_worker(self, url: str) -> None: ...
    def route(
        self, prompt: str | Iterable[int] | None = None, key: str | None = None, exclude: Sequence[str] = ...
    ) -> RoutingLease: ...
    def explain(self, prompt: str | Iterable[int] | None = None, key: str | None = None) -> list[dict[str, Any]]: ...
    def loads(self) -> dict[str, dict[str, Any]]: ...

def get_version_string() -> str: ...
def get_verbose_version_string() -> str: ...
def get_available_tool_call_parsers() -> list[str]: ...
def check_config(keywords: dict[str, Any], given: list[str]) -> None: ...
def config_schema() -> str: ...
def option_names() -> list[str]: ...
def routes() -> list[tuple[str, str, str]]: ...
def option_choices() -> dict[str, list[str]]: ...
def option_defaults() -> dict[str, Any]: ...
def constructor_defaults() -> dict[str, Any]: ...
def sim_option_defaults() -> dict[str, Any]: ...
def routing_option_defaults() -> dict[str, Any]: ...
def fleet_option_defaults() -> dict[str, Any]: ...
def fleet_policies() -> list[str]: ...
def simulate_fleet(
    trace: FleetTrace, policy: str, progress: Callable[[int], object] | None = None, **options: Any
) -> dict[str, Any]: ...
