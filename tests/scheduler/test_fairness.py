"""Who gets the next place, whoever comes in whatever number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scheduler.fairness import TURN, standings

SUBJECTS = st.sampled_from(("", "a", "b", "c", "d"))
LINES = st.lists(st.tuples(st.integers(1, 400), SUBJECTS), max_size=40, unique_by=lambda entry: entry[0]).map(
    sorted
)
HELD = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5))


def controlled_of(line: list[tuple[int, str]], held: dict[str, int]) -> Counter[str]:
    """Sessions by subject, with a place and without."""
    return Counter(held) + Counter(subject for _, subject in line if subject)


def served(line: list[tuple[int, str]], held: dict[str, int]) -> list[tuple[int, str]]:
    """The line in the order in which places are given."""
    stand = standings(line, controlled_of(line, held))
    return [line[at] for at in sorted(range(len(line)), key=stand.__getitem__)]


def turns(line: list[tuple[int, str]], held: dict[str, int]) -> dict[int, int]:
    """Sessions of the same subject before each, by queue_order, counted one by one."""
    return {
        order: 0 if subject == "" else held.get(subject, 0) + sum(s == subject for o, s in line if o < order)
        for order, subject in line
    }


@given(LINES, HELD)
def test_one_subject_is_first_come_first_served(line: list[tuple[int, str]], held: dict[str, int]) -> None:
    """Whoever else waits, the sessions of a subject, and those without one, keep their order."""
    order = served(line, held)
    for subject in ("", "a", "b"):
        own = [o for o, s in order if s == subject]
        assert own == sorted(own)


@given(LINES, st.sampled_from(("", "a")))
def test_without_subjects_or_with_one_nothing_changes(line: list[tuple[int, str]], subject: str) -> None:
    """First come first served."""
    line = [(order, subject) for order, _ in line]
    assert served(line, {"a": 3}) == line


@given(LINES, HELD)
def test_few_of_those_that_came_later_go_first(line: list[tuple[int, str]], held: dict[str, int]) -> None:
    """At most TURN for each session that the subject has before it; before its first, nobody."""
    order, turn = served(line, held), turns(line, held)
    for at, (mine, _) in enumerate(order):
        passed_by = [other - mine for other, _ in order[:at] if other > mine]
        assert all(distance < TURN * turn[mine] for distance in passed_by)


@given(LINES, HELD)
def test_subjects_take_turns(line: list[tuple[int, str]], held: dict[str, int]) -> None:
    """Among those that came within TURN of each other, nobody goes before one whose turn it is."""
    line = [(order, subject) for order, subject in line if order <= TURN and subject]
    turn = turns(line, held)
    keys = [(turn[order], order) for order, _ in served(line, held)]
    assert all(before < after for before, after in pairwise(keys))


@dataclass
class Line:
    """A line that is served while others come and go, and what is promised of each who waits."""

    held: Counter[str] = field(default_factory=Counter)
    waiting: dict[int, tuple[str, int]] = field(default_factory=dict)
    """queue_order → (subject, turn at its coming)."""
    serial: int = 0

    def come(self, subject: str) -> None:
        self.serial += 1
        before = sum(s == subject for s, _ in self.waiting.values()) + self.held[subject]
        self.waiting[self.serial] = (subject, before)

    def serve(self) -> int | None:
        """The next gets a place; nobody that came later than was promised got one before."""
        line = [(order, subject) for order, (subject, _) in sorted(self.waiting.items())]
        if not line:
            return None
        ((order, subject), *_) = served(line, dict(self.held))
        for other, (_, turn) in self.waiting.items():
            assert order - other < max(1, TURN * turn)
        del self.waiting[order]
        self.held[subject] += 1
        return order

    def end(self, subject: str) -> None:
        if self.held[subject]:
            self.held[subject] -= 1


@given(
    st.lists(st.tuples(st.sampled_from(("come", "serve", "end")), st.sampled_from("abcdefgh")), max_size=150)
)
def test_whatever_comes_and_goes_the_promise_holds(steps: list[tuple[str, str]]) -> None:
    """Also while sessions end, and others of the same subject come."""
    line = Line()
    for step, subject in steps:
        match step:
            case "come":
                line.come(subject)
            case "serve":
                line.serve()
            case "end":
                line.end(subject)


def test_nobody_is_passed_over_for_ever() -> None:
    """Though subjects that have nothing yet never cease to come, and take every place that becomes free."""
    line = Line(held=Counter(a=2))
    line.come("a")
    for number in range(1, 10 * TURN):
        line.come(f"newcomer {number}")
        if line.serve() == 1:
            break
    assert number == 2 * TURN


def test_many_sessions_of_one_subject_hold_up_nobody() -> None:
    """Who comes after eight of another subject has the second place, and its next one the fourth."""
    line = [(n, "a") for n in range(1, 9)] + [(9, "b"), (10, "b"), (11, "c")]
    assert [order for order, _ in served(line, {})][:6] == [1, 9, 11, 2, 10, 3]


def test_who_has_less_goes_first() -> None:
    """A place that one has already counts as one had."""
    assert served([(1, "a"), (2, "b")], {"a": 1}) == [(2, "b"), (1, "a")]
