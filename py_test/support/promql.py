"""PromQL expressions against the series of docs/metrics.md: names, labels, and what can match at all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import promql_parser as promql

from support.pages import ROOT, table, without_blocks

METRICS = ROOT / "docs" / "metrics.md"
# What Prometheus adds to every sample.
TARGET = frozenset({"instance", "job"})
# Series of Prometheus itself and of its blackbox exporter.
FOREIGN = {"up": "gauge", "probe_ssl_earliest_cert_expiry": "gauge"}
RATES = ("rate", "irate", "increase")


def rows_of_metrics() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every series, as the page has them."""
    rows = table(METRICS, "series")
    return {name.strip("`"): (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, *_ in rows}


def queries_of(page: Path, *columns: str) -> list[str]:
    """The code in the columns with these headings, in all tables of a page."""
    found, at = [], None
    for line in without_blocks(page).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] if line.startswith("|") else []
        if not cells:
            at = None
        elif at is None:
            at = [number for number, cell in enumerate(cells) if cell in columns]
        elif not line.startswith("| ---"):
            found += [code.replace("\\|", "|") for number in at for code in re.findall(r"`([^`]+)`", cells[number])]
    assert found, f"{page} has no table with one of the columns {columns}"
    return found


def check(expression: str, series: dict[str, tuple[str, set[str]]]) -> set[str]:
    """The labels of an expression's result. Raises a `ValueError` that says what cannot be right."""
    return _Checker(series).labels(promql.parse(expression))


class _Checker:
    def __init__(self, series: dict[str, tuple[str, set[str]]]) -> None:
        self._series = series

    def labels(self, node: Any) -> set[str]:
        """The labels that the samples of a node may have."""
        kind = type(node).__name__
        return {
            "VectorSelector": self._selector,
            "MatrixSelector": lambda it: self.labels(it.vector_selector),
            "SubqueryExpr": lambda it: self.labels(it.expr),
            "ParenExpr": lambda it: self.labels(it.expr),
            "UnaryExpr": lambda it: self.labels(it.expr),
            "AggregateExpr": self._aggregation,
            "BinaryExpr": self._operation,
            "Call": self._call,
            "NumberLiteral": lambda _: set(),
            "StringLiteral": lambda _: set(),
        }[kind](node)

    def family(self, name: str) -> tuple[str, str, set[str]]:
        """Name, type and labels of the family that a series is of."""
        if name in FOREIGN:
            return name, FOREIGN[name], set()
        family = name if name in self._series else re.sub(r"_(bucket|sum|count)$", "", name)
        _need(family in self._series, f"there is no series {name}")
        kind, labels = self._series[family]
        _need((kind == "histogram") == (family != name), f"{name} is no name of a sample")
        return family, kind, labels | ({"le"} if name.endswith("_bucket") else set())

    def _selector(self, node: Any) -> set[str]:
        labels = self.family(node.name)[2] | TARGET
        self._known((it.name for it in node.matchers.matchers), labels, node)
        return labels

    def _aggregation(self, node: Any) -> set[str]:
        inner, how = self.labels(node.expr), node.modifier
        if how is None:
            return inner if str(node.op) in ("topk", "bottomk") else set()
        self._known(how.labels, inner, node)
        kept = set(how.labels)
        return kept if how.type == promql.AggModifierType.By else inner - kept

    def _call(self, node: Any) -> set[str]:
        name = node.func.name
        labels: set[str] = set().union(*(self.labels(argument) for argument in node.args))
        if name in RATES:
            sample = node.args[0].vector_selector.name
            _need(self.family(sample)[1] != "gauge", f"{name} of the gauge {sample}")
        if name == "histogram_quantile":
            _need("le" in labels, f"{name} without the label le: {node.prettify()}")
            labels -= {"le"}
        return set() if name == "absent" else labels

    def _operation(self, node: Any) -> set[str]:
        left, right = self.labels(node.lhs), self.labels(node.rhs)
        if _is_scalar(node.lhs) or _is_scalar(node.rhs):
            return left | right
        matching = node.modifier.matching if node.modifier else None
        if matching is not None:
            self._known(matching.labels, left & right, node)
        elif str(node.op) != "or" and "vector(" not in node.rhs.prettify():
            _need(left == right, f"the labels {left} and {right} never match: {node.prettify()}")
        return left | right if str(node.op) == "or" else left

    def _known(self, labels: Iterable[str], known: set[str], node: Any) -> None:
        unknown = set(labels) - known
        _need(not unknown, f"there is no label {', '.join(sorted(unknown))}: {node.prettify()}")


def _is_scalar(node: Any) -> bool:
    kind = type(node).__name__
    if kind == "BinaryExpr":
        return _is_scalar(node.lhs) and _is_scalar(node.rhs)
    if kind in ("ParenExpr", "UnaryExpr"):
        return _is_scalar(node.expr)
    return kind == "NumberLiteral" or (kind == "Call" and node.func.name in ("time", "scalar"))


def _need(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)
