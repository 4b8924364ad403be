"""What models this cluster serves, as far as this gateway knows. Pure; the shell keeps it current."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.messages import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Models by name. Replaced as a whole when the cluster changes."""

    models: Mapping[str, ModelInfo] = field(default_factory=dict)
    """Published by an engine, now or earlier."""
    expected: frozenset[str] = frozenset()
    """Desired, whether or not an engine is ready."""
    codecs: tuple[str, ...] = ("h264",)
    """What clients may have their video in."""
    default: str | None = None
    """Model of a `start` that names none; None: the first known one."""

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.expected | set(self.models)))

    def pick_codec(self, accept: Sequence[str]) -> str | None:
        """The first of a client's codecs that is served; None: none is."""
        return next((codec for codec in accept if codec in self.codecs), None)

    def pick(self, name: str | None) -> str | None:
        """The model that a `start` means; None when it names none and nothing is known yet."""
        if name is not None:
            return name
        return self.default or next(iter((*sorted(self.models), *self.names())), None)
