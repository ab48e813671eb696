"""Stands in for vLLM, of which SGLang wants three operators on a CPU without its own kernels."""

__version__ = "0.0.0"
