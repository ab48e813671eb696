"""The shape of the simulator's results."""

from __future__ import annotations

from typing import Any, TypeAlias, TypedDict

Report: TypeAlias = dict[str, Any]
"""One policy's figures by name, as `simulate_fleet` returns them: numbers, `policy` (its name), and
`ttft_quantiles_ms`, a list."""


class Run(TypedDict):
    """The policies' reports at one speed."""

    speed: float
    policies: list[Report]
