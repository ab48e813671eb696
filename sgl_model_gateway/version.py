"""The version, which is written down once: in Cargo.toml."""

try:
    from .sgl_model_gateway_rs import __version__
except ImportError:  # a source tree that was never built
    from importlib.metadata import PackageNotFoundError, version

    try:
        __version__ = version("sgl-model-gateway")
    except PackageNotFoundError:
        __version__ = "0.0.0+unknown"

__all__ = ["__version__"]
