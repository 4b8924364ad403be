"""Dashboard and alert rules: they parse, and name only metrics that a gateway exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "launch" / "observability"
NAME = re.compile(r"\bturboserve_\w+")


def exported() -> set[str]:
    """Names of time series."""
    names: set[str] = set()
    for metric in Metrics().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        names.update(metric.name + suffix for suffix in suffixes.get(metric.type, ("",)))
    return names


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return content


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return shown + [rule["expr"] for rule in rules()]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_uses_exported_metrics(expression: str) -> None:
    names = set(NAME.findall(expression))
    assert names and names <= exported()
    assert expression.count("(") == expression.count(")")


def test_every_metric_is_on_the_dashboard() -> None:
    """Of a histogram the buckets are enough."""
    shown = {name for e in expressions() for name in NAME.findall(e)}
    assert {name for name in exported() if not name.endswith(("_sum", "_count"))} <= shown


def test_panels_do_not_overlap() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["annotations"]["summary"] and rule["annotations"]["action"], rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
