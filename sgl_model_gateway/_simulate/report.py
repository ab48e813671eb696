"""The shape of the simulator's results."""

from __future__ import annotations

from typing import Any, TypeAlias, TypedDict

Report: TypeAlias = dict[str, Any]
"""One policy's figures by name, as `simulate_fleet` returns them: numbers, `policy` (its name),
`tenant_service` by tenant, and the lists `ttft_quantiles_ms`, `tpot_quantiles_ms` and `e2e_quantiles_ms`."""


class Run(TypedDict):
    """The policies' reports at one speed."""

    speed: float
    policies: list[Report]
