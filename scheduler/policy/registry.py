"""Policies by name. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.policy.base import Policy
from scheduler.policy.least_loaded import LeastLoaded

POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (LeastLoaded(),)}
ANNOUNCED = ("fixed", "round_robin", "greedy_load", "greedy_memory", "turboserve", "slack")
"""Names of DESIGN.md section 8 that a later version brings."""


def find_policy(name: str) -> Policy:
    """The policy called `name`. Raises ValueError with the names that exist."""
    policy = POLICIES.get(name)
    if policy is None:
        problem = "is not available yet" if name in ANNOUNCED else "does not exist"
        raise ValueError(f"policy {name!r} {problem}; available: {', '.join(sorted(POLICIES))}")
    return policy
