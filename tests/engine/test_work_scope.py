"""A helper thread and whoever ends its work."""

from __future__ import annotations

import threading

import pytest

from engine.pairs import PairLost
from engine.work_scope import WorkScope


def test_no_step_begins_after_the_end() -> None:
    scope, steps = WorkScope(), []
    with scope.step():
        steps.append(1)
    scope.end()
    with pytest.raises(PairLost, match="off"), scope.step():
        steps.append(2)
    assert scope.is_over and steps == [1]


def test_the_end_waits_for_the_step_under_way() -> None:
    scope = WorkScope()
    ending = threading.Thread(target=scope.end, daemon=True)
    with scope.step():
        ending.start()
        ending.join(0.2)  # longer than it takes when it does not wait
        assert ending.is_alive() and not scope.is_over
    ending.join(5)
    assert scope.is_over


def test_a_step_that_fails_ends_nothing() -> None:
    scope = WorkScope()
    with pytest.raises(ValueError, match="planted"), scope.step():
        raise ValueError("planted")
    with scope.step():
        assert not scope.is_over
