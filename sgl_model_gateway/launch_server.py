"""`python -m sgl_model_gateway.launch_server`: SGLang servers together with a gateway. Not built yet."""

from __future__ import annotations


def main() -> None:
    """Will start the servers and the gateway; until then it says so."""
    raise NotImplementedError(
        "launch_server is not built yet. Start the SGLang servers yourself, "
        "then run: sgl-model-gateway launch --worker-urls http://HOST:PORT ..."
    )


if __name__ == "__main__":
    main()
