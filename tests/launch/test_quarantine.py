"""When places are avoided."""

from __future__ import annotations

from launch.quarantine import Quarantine


def test_the_third_early_death_in_ten_minutes() -> None:
    """Avoids the place for ten minutes; other places are not touched."""
    quarantine = Quarantine()
    assert [quarantine.note_death("a", now_s) for now_s in (0, 100, 600)] == [False, False, True]
    assert not quarantine.note_death("b", 600)
    assert quarantine.avoided(1_199) == ("a",)
    assert quarantine.avoided(1_200) == ()


def test_old_deaths_are_forgotten() -> None:
    """Three, but over more than ten minutes."""
    quarantine = Quarantine()
    assert not any(quarantine.note_death("a", now_s) for now_s in (0, 300, 601))
    assert quarantine.note_death("a", 700)
