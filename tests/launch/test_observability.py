"""Dashboard and alert rules: they parse, and name only metrics that a gateway exports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics import Metrics
from scheduler.messages import EngineState
from scheduler.store.values import ClusterInfo
from tests.scheduler.policy.worlds import NOW_MS, engine

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


def shown() -> list[str]:
    """What the dashboard asks for."""
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def expressions() -> list[str]:
    return shown() + [rule["expr"] for rule in rules()]


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_uses_exported_metrics(expression: str) -> None:
    names = set(NAME.findall(expression))
    assert names and names <= exported()
    assert expression.count("(") == expression.count(")")


def test_every_metric_is_on_the_dashboard() -> None:
    """Of a histogram the buckets are enough."""
    names = {name for expression in shown() for name in NAME.findall(expression)}
    assert {name for name in exported() if not name.endswith(("_sum", "_count"))} <= names


def test_the_first_count_of_a_kind_is_seen() -> None:
    """A counter with labels has no series before: `increase` alone would miss what happens once."""
    counted = {rule["alert"]: rule["expr"] for rule in rules() if "increase(" in rule["expr"]}
    assert set(counted) == {"TurboServeFaults", "TurboServeInternalErrors"}
    for expression in counted.values():
        (series, window), *_ = re.findall(r"increase\((.+?)\[(\w+)\]\)", expression)
        assert f"({series} unless {series} offset {window}) or increase" in " ".join(expression.split())


def test_panels_do_not_overlap() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["annotations"]["summary"] and rule["annotations"]["action"], rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_an_engine_that_starts_is_not_silent() -> None:
    """It may not beat before its limit for that, which is longer than the alert's."""
    metrics = Metrics()
    info = ClusterInfo(
        **{"policy": "", "budget": 2, "queue": 0, "release_interval_ms": 0, "start_ms": 0, "term": 1}
    )
    engines = (
        engine("e_1", heartbeat_ms=NOW_MS - 60_000),
        engine("e_2", EngineState.STARTING, heartbeat_ms=0),
    )
    metrics.cluster.set(engines, info, NOW_MS)
    name = "turboserve_engine_heartbeat_age_seconds"
    heard = [family for family in metrics.cluster.collect() if family.name == name]
    assert [(s.labels["engine"], s.value) for metric in heard for s in metric.samples] == [("e_1", 60.0)]
