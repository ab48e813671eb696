"""`python -m sgl_model_gateway`."""

from .cli import main

if __name__ == "__main__":
    main()
