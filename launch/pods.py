"""What the pods of a cluster's engines should be: documents made and read, and what to do about them. Pure.

One pod runs one engine and carries its id, which is used once: a pod that ended is never made again. Labels
say which pods are ours, so that a provisioner that starts anew finds what an earlier one had made.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scheduler.messages import DesiredEngine, EngineId

__all__ = [
    "Pod",
    "PodPlan",
    "check_template",
    "labels_of",
    "make_pod",
    "plan_pods",
    "read_pod",
    "selector_of",
]

ENGINE_LABEL: Final = "turboserve/engine"
CONTAINER: Final = "engine"
"""The container of the template that runs the engine."""
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,38}[A-Za-z0-9])?")
_AVOID_WEIGHT: Final = 100
"""Of a preference, not a requirement: an engine on a bad node is better than none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod as the API last told."""

    name: str
    engine: EngineId
    node: str = ""
    """"" until it has one."""
    is_going: bool = False
    """It was told to end and has not yet."""
    end: str = ""
    """How it ended; "" while it has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlan:
    """What brings the pods to the wanted set."""

    create: tuple[DesiredEngine, ...] = ()
    delete: tuple[Pod, ...] = ()
    ended: tuple[Pod, ...] = ()
    """Wanted ones that ended by themselves: to be reported, once."""


def plan_pods(
    wanted: Collection[DesiredEngine], pods: Mapping[EngineId, Pod], ended: Collection[EngineId]
) -> PodPlan:
    """`ended`: engines whose end was reported; none of them gets a pod again."""
    ids = {engine.id for engine in wanted}
    return PodPlan(
        create=tuple(engine for engine in wanted if engine.id not in pods and engine.id not in ended),
        delete=tuple(p for p in pods.values() if not p.is_going and (p.engine not in ids or p.end)),
        ended=tuple(p for p in pods.values() if p.end and p.engine in ids and p.engine not in ended),
    )


def labels_of(cluster: str) -> dict[str, str]:
    """Labels of all engines of a cluster. Raises ValueError: the name is no label."""
    if not _LABEL_VALUE.fullmatch(cluster):
        raise ValueError(
            f"cluster {cluster!r} can't be a label of Kubernetes: "
            "use at most 40 letters, digits, '-', '_' or '.'"
        )
    return {
        "app.kubernetes.io/name": "turboserve",
        "app.kubernetes.io/component": "engine",
        "app.kubernetes.io/instance": cluster,
    }


def selector_of(cluster: str) -> str:
    """What finds them."""
    return ",".join(f"{key}={value}" for key, value in labels_of(cluster).items())


def check_template(template: object) -> dict[str, Any]:
    """A pod document that `make_pod` can complete. Raises ValueError with a sentence."""
    if not isinstance(template, dict) or template.get("kind") != "Pod":
        raise ValueError("the pod template must be one document of kind Pod")
    containers = (template.get("spec") or {}).get("containers") or []
    if CONTAINER not in [container.get("name") for container in containers]:
        raise ValueError(f"the pod template must have a container called {CONTAINER!r}")
    return template


def make_pod(
    template: Mapping[str, Any], engine: DesiredEngine, *, cluster: str, avoid: Sequence[str] = ()
) -> dict[str, Any]:
    """The template completed for one engine: name, labels, id and model; `avoid`: names of nodes."""
    pod = copy.deepcopy(dict(template))
    pod["metadata"] = metadata = pod.get("metadata") or {}
    spec = pod["spec"]
    metadata["name"] = f"{_dns_name(cluster)}-{_dns_name(engine.id)}"
    metadata["labels"] = (metadata.get("labels") or {}) | labels_of(cluster) | {ENGINE_LABEL: engine.id}
    spec["restartPolicy"] = "Never"  # an engine that ended is replaced under a new id
    for container in spec["containers"]:
        for amounts in (container.get("resources") or {}).values():
            if isinstance(amounts, dict):  # people write numbers, which the client library refuses
                amounts.update({name: str(amount) for name, amount in amounts.items()})
        if container["name"] == CONTAINER:
            _set_environment(container, TURBOSERVE_ENGINE_ID=engine.id, TURBOSERVE_MODEL=engine.model)
            _set_environment(container, TURBOSERVE_CLUSTER=cluster)
    if avoid:
        _avoid(spec, avoid)
    return pod


def _dns_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _set_environment(container: dict[str, Any], **variables: str) -> None:
    kept = [item for item in container.get("env") or [] if item["name"] not in variables]
    container["env"] = kept + [{"name": name, "value": value} for name, value in variables.items()]


def _avoid(spec: dict[str, Any], nodes: Sequence[str]) -> None:
    affinity = spec.get("affinity") or {}
    on_nodes = affinity.get("nodeAffinity") or {}
    preferred = list(on_nodes.get("preferredDuringSchedulingIgnoredDuringExecution") or [])
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    preferred.append({"weight": _AVOID_WEIGHT, "preference": {"matchFields": fields}})
    on_nodes["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    spec["affinity"] = affinity | {"nodeAffinity": on_nodes}


def read_pod(document: Mapping[str, Any]) -> Pod | None:
    """None: it carries no engine's id."""
    metadata = document["metadata"]
    engine = (metadata.get("labels") or {}).get(ENGINE_LABEL)
    if not engine:
        return None
    status = document.get("status") or {}
    return Pod(
        name=metadata["name"],
        engine=EngineId(engine),
        node=(document.get("spec") or {}).get("nodeName") or "",
        is_going=bool(metadata.get("deletionTimestamp")),
        end=_describe_end(status) if status.get("phase") in ("Succeeded", "Failed") else "",
    )


def _describe_end(status: Mapping[str, Any]) -> str:
    """As short as a person needs it: "Evicted: …", "OOMKilled, exit code 137"."""
    if status.get("reason"):
        return f"pod {status['reason']}: {status.get('message') or 'no message'}"
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if ended and container.get("name") == CONTAINER:
            return f"{ended.get('reason') or 'container ended'}, exit code {ended.get('exitCode')}"
    return f"pod {status['phase'].lower()}"
