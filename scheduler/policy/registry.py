"""Policies by name. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.policy.base import Policy
from scheduler.policy.fixed import Fixed
from scheduler.policy.greedy_load import GreedyLoad
from scheduler.policy.greedy_memory import GreedyMemory
from scheduler.policy.round_robin import RoundRobin
from scheduler.policy.slack import Slack
from scheduler.policy.turboserve import Turboserve

MIGRATING: tuple[Policy, ...] = (Turboserve(), Slack())
STAYING: tuple[Policy, ...] = (
    Fixed(),
    RoundRobin(),
    GreedyLoad(),
    GreedyMemory(),
    GreedyMemory(name="least_loaded"),  # the name that the first slice had for it
)
ALL: Mapping[str, Policy] = {policy.name: policy for policy in (*STAYING, *MIGRATING)}


def find_policy(name: str) -> Policy:
    """The policy called `name`. Raises ValueError with the names that can be used."""
    policy = ALL.get(name)
    if policy is None:
        raise ValueError(f"policy {name!r} does not exist; available: {', '.join(sorted(ALL))}")
    return policy
