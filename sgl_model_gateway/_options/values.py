"""Structured flag values: labels, groups of pods, workers with a bootstrap port, admin keys, role names."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .names import ROLES

logger = logging.getLogger(__name__)


def selector(items: Iterable[str] | Mapping[str, str] | str | None) -> dict[str, str]:
    """`["a=b", "c=d e=f", "g=h,i=j"]` as a dict. A token without `=` is dropped with a warning."""
    if isinstance(items, Mapping):
        return dict(items)
    labels = {}
    # No value of a label has a comma.
    for token in " ".join([items] if isinstance(items, str) else items or ()).replace(",", " ").split():
        key, equals, value = token.partition("=")
        if equals:
            labels[key] = value
        else:
            logger.warning("selector %r is ignored: expected key=value", token)
    return labels


def worker_zones(entries: Iterable[str] | Mapping[str, str] | None) -> dict[str, str]:
    """`URL=ZONE` entries as a dict; a URL may hold `=`, a zone may not."""
    if isinstance(entries, Mapping):
        return dict(entries)
    zones = {}
    for entry in entries or ():
        url, equals, zone = entry.rpartition("=")
        if not equals:
            raise ValueError(f"Invalid zone of a worker: {entry!r}; expected URL=ZONE")
        zones[url] = zone
    return zones


def discovery_groups(text: str | None) -> list[dict[str, Any]]:
    """`[{"selector": {"app": "x"}, "port": 30000}]` as a list of dicts. The gateway checks their fields."""
    if not text:
        return []
    try:
        groups = json.loads(text)
    except ValueError as error:
        raise ValueError(f"Invalid groups of service discovery: no JSON: {error}") from None
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise ValueError("Invalid groups of service discovery: expected a list of objects")
    return groups


def prefill_urls(occurrences: Iterable[Sequence[str]] | None) -> list[tuple[str, int | None]]:
    """Every `--prefill URL [PORT|none]` as `(url, port)`."""
    return [_prefill(occurrence) for occurrence in occurrences or ()]


def _prefill(values: Sequence[str]) -> tuple[str, int | None]:
    if len(values) > 2:
        raise ValueError(f"Too many values for one prefill worker: {' '.join(values)!r}; expected URL [PORT|none]")
    url, port = values[0], values[1] if len(values) == 2 else "none"
    if port.lower() == "none":
        return url, None
    try:
        return url, int(port)
    except ValueError:
        raise ValueError(f"Invalid bootstrap port: {port!r}; expected a number or 'none'") from None


def decode_urls(occurrences: Iterable[Sequence[str]] | None) -> list[str]:
    """Every `--decode URL`."""
    return [values[0] for values in occurrences or ()]


def control_plane_api_keys(entries: Iterable[str] | None) -> list[tuple[str, str, str, str]]:
    """`id:name:role:key` as `(id, name, key, role)`; the key may hold colons. No error repeats an entry."""
    keys = []
    for number, entry in enumerate(entries or (), 1):
        parts = entry.split(":", 3)
        if len(parts) < 4:
            raise ValueError(f"Invalid API key format in entry {number}: expected id:name:role:key")
        identifier, name, role, key = parts
        if not _is_role(role):
            raise ValueError(f"Invalid role in API key entry {number}: expected {' or '.join(ROLES)}")
        keys.append((identifier, name, key, role.lower()))
    return keys


def jwt_role_mapping(entries: Iterable[str] | None) -> dict[str, str]:
    """`theirs=ours` as a dict, ours being a role of the gateway."""
    mapping = {}
    for entry in entries or ():
        theirs, equals, ours = entry.partition("=")
        if not equals:
            raise ValueError(f"Invalid role mapping format: {entry!r}; expected idp_role=gateway_role")
        if not _is_role(ours):
            raise ValueError(f"Invalid gateway role: {ours!r}; expected {' or '.join(ROLES)}")
        mapping[theirs] = ours.lower()
    return mapping


def _is_role(name: str) -> bool:
    return not ROLES or name.lower() in ROLES
