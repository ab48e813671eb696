"""The names that options can be set to. The Rust extension lists them; Python has no list of its own.

Flags can be read without the extension. Then the lists are empty, and any name passes.
"""

from __future__ import annotations

import logging

__all__ = ["ROLES", "get_available_tool_call_parsers", "option_choices"]

logger = logging.getLogger(__name__)

try:
    from ..sgl_model_gateway_rs import PyRole, get_available_tool_call_parsers, option_choices

    ROLES = tuple(PyRole.members())
except ImportError:
    logger.warning("the Rust extension is missing: flags can be read, a gateway cannot be started")

    ROLES = ()

    def get_available_tool_call_parsers() -> list[str]:
        return []

    def option_choices() -> dict[str, list[str]]:
        return {}
