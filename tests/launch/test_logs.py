"""`up --log-format json`: what each role writes can be parsed, and a session is found by its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import running_cluster, wait_for
from tests.patience import PATIENT
from tests.viewer import watching


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.cluster
async def test_every_role_logs_json() -> None:
    """Each line knows its process; the session's beginning and end are the gateway's to tell."""
    with running_cluster(*PATIENT, "--log-format", "json", "--capacity", "1", engines=1) as cluster:
        async with watching(cluster.url) as viewer:
            await viewer.take(2)
            session = viewer.session.id
        logs = cluster.dir / "logs"
        gateway, engine = logs / "gateway-0.log", logs / f"{next(iter(cluster.pids('engine-')))}.log"
        wait_for("the end", lambda: "close, code" in gateway.read_text())
        told = lines(gateway)
        assert len({line["gateway"] for line in told}) == 1
        ours = [line["message"] for line in told if line.get("session") == session]
        assert ours[0] == f"{session}: start" and ours[-1].startswith(f"{session}: close, code 1")
        assert all(line["level"] and line["ts"] for line in lines(logs / "scheduler-0.log"))
        (engine_id,) = cluster.engines()
        assert {line["engine"] for line in lines(engine)} == {engine_id}
