"""What `turboserve up` makes of its settings, role by role."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from engine.config import EngineConfig
from gateway.config import GatewayConfig
from launch.config import UpConfig
from launch.settings import Value, build
from scheduler.config import SchedulerConfig

__all__ = ["build_roles"]

_ANY_ENGINE: Final = "e_00000000"
_NO_REDIS_YET: Final = "unix:///not-started"


def build_roles(
    values: Mapping[str, Value],
) -> tuple[UpConfig, GatewayConfig, SchedulerConfig, EngineConfig]:
    """Check every role's settings, so that a bad one stops us before anything is touched."""
    config = build(UpConfig, values)
    secret = None if "link_secret" in values else secrets.token_urlsafe(32)
    redis = config.redis or _NO_REDIS_YET
    recordings = None if "recordings" in values else str(Path(config.dir).absolute() / "recordings")
    return (
        config,
        build(GatewayConfig, values, redis=redis, link_secret=secret, recordings=recordings),
        build(SchedulerConfig, values, redis=redis),
        build(EngineConfig, values, engine_id=_ANY_ENGINE, redis=redis, link_secret=secret),
    )
