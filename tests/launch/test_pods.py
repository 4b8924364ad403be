"""Pod documents, and what to do about pods."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from launch.pods import (
    Pod,
    PodPlan,
    check_template,
    labels_of,
    make_pod,
    plan_pods,
    read_pod,
)
from scheduler.messages import DesiredEngine, EngineId

A, B, C = (DesiredEngine(id=EngineId(f"e_0000000{n}"), model="shapes") for n in "abc")
TEMPLATE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"labels": {"team": "video"}},
    "spec": {
        "containers": [
            {"name": "sidecar", "image": "log", "resources": {"limits": {"nvidia.com/gpu": 1}}},
            {"name": "engine", "image": "x", "env": [{"name": "TURBOSERVE_MODEL", "value": "old"}]},
        ]
    },
}


def pod_of(engine: DesiredEngine, **changes: Any) -> Pod:
    return Pod(name=f"pod-{engine.id}", engine=engine.id, **changes)


@pytest.mark.parametrize(
    ("wanted", "pods", "ended", "plan"),
    [
        ([A, B], [], [], PodPlan(create=(A, B))),
        ([A, B], [pod_of(A)], [], PodPlan(create=(B,))),
        ([A], [pod_of(A), pod_of(B)], [], PodPlan(delete=(pod_of(B),))),
        ([A], [pod_of(A), pod_of(B, is_going=True)], [], PodPlan()),
        ([A], [pod_of(A, end="x")], [], PodPlan(delete=(pod_of(A, end="x"),), ended=(pod_of(A, end="x"),))),
        ([A], [pod_of(A, end="x", is_going=True)], [A.id], PodPlan()),
        ([A, C], [], [A.id], PodPlan(create=(C,))),
        ([], [], [], PodPlan()),
    ],
)
def test_plans(wanted: list[DesiredEngine], pods: list[Pod], ended: list[EngineId], plan: PodPlan) -> None:
    """Missing ones are made, unwanted and ended ones deleted once, ends reported once, no id used twice."""
    assert plan_pods(wanted, {pod.engine: pod for pod in pods}, ended) == plan


def test_a_pod_carries_its_engine() -> None:
    """Id, model and cluster in the environment, ours over the template's; the template stays as it was."""
    pod = make_pod(TEMPLATE, A, cluster="Main_1")
    kubernetes_validate.validate(pod, "1.37", strict=True)
    assert pod["metadata"]["name"] == "main-1-e-0000000a"
    assert pod["metadata"]["labels"] == {"team": "video", "turboserve/engine": A.id, **labels_of("Main_1")}
    assert pod["spec"]["restartPolicy"] == "Never"
    sidecar, engine = pod["spec"]["containers"]
    assert "env" not in sidecar and sidecar["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert {item["name"]: item["value"] for item in engine["env"]} == {
        "TURBOSERVE_ENGINE_ID": A.id,
        "TURBOSERVE_MODEL": "shapes",
        "TURBOSERVE_CLUSTER": "Main_1",
    }
    assert TEMPLATE["metadata"]["labels"] == {"team": "video"}


def test_nodes_are_avoided_but_not_forbidden() -> None:
    """A preference that the template's own ones stand beside."""
    own = {"weight": 1, "preference": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}}
    key = "preferredDuringSchedulingIgnoredDuringExecution"
    template = TEMPLATE | {"spec": TEMPLATE["spec"] | {"affinity": {"nodeAffinity": {key: [own]}}}}
    pod = make_pod(template, A, cluster="main", avoid=["n1", "n2"])
    kubernetes_validate.validate(pod, "1.37", strict=True)
    first, second = pod["spec"]["affinity"]["nodeAffinity"][key]
    assert first == own
    assert [field["values"] for field in second["preference"]["matchFields"]] == [["n1"], ["n2"]]


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ({"phase": "Running"}, ""),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "pod Evicted: low on memory"),
        (
            {
                "phase": "Failed",
                "containerStatuses": [
                    {"name": "engine", "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
                ],
            },
            "OOMKilled, exit code 137",
        ),
        ({"phase": "Succeeded"}, "pod succeeded"),
        ({}, ""),
    ],
)
def test_ends_are_told_in_words(status: dict[str, Any], end: str) -> None:
    """As the kubelet says it."""
    pod = read_pod(make_pod(TEMPLATE, A, cluster="main") | {"status": status})
    assert pod is not None and pod.end == end and pod.engine == A.id


def test_other_pods_are_not_ours() -> None:
    """No label, no engine."""
    assert read_pod({"metadata": {"name": "web"}}) is None


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "kind Pod"),
        ({"kind": "Deployment"}, "kind Pod"),
        ({"kind": "Pod", "spec": {"containers": [{"name": "main"}]}}, "called 'engine'"),
    ],
)
def test_bad_templates(template: object, says: str) -> None:
    """Found before anything starts."""
    with pytest.raises(ValueError, match=says):
        check_template(template)


def test_cluster_names_that_are_no_labels() -> None:
    """Redis would take them, Kubernetes not."""
    with pytest.raises(ValueError, match="label"):
        labels_of("a/b")
