"""The PrometheusRule of deploy/kubernetes has the alerts of deploy/prometheus. Run this file to write it anew."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
RULE = DEPLOY / "kubernetes" / "monitoring" / "prometheus-rule.yaml"
HEAD = """\
# deploy/prometheus/rules.yml for the Prometheus Operator, written by `python py_test/unit/test_prometheus_rule.py`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sgl-model-gateway
  labels: {app: sgl-model-gateway}
spec:
  groups:
"""


def rule() -> str:
    groups = RULES.read_text().split("\ngroups:\n", 1)[1]
    return HEAD + re.sub(r"^(?=.)", "  ", groups, flags=re.M)


def test_rules_of_the_operator_are_those_of_prometheus() -> None:
    assert RULE.read_text() == rule(), f"run: python {Path(__file__).relative_to(DEPLOY.parent)}"
    assert yaml.safe_load(RULE.read_text())["spec"] == yaml.safe_load(RULES.read_text())


if __name__ == "__main__":
    RULE.write_text(rule())
