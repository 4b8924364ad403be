"""In which order sessions that wait get places: by subject in turn. Pure.

A session's turn is how many sessions its subject has before it: those with a place, and those in front of it
in the line. It stands as if it had come TURN × turn places later than it did. So

* the sessions of one subject stay in the order in which they came, and so do all where none has a subject;
* among those that came within TURN places of each other, each subject gets one place, then each a second;
* who came long before goes first whatever its turn: at most TURN × turn of those that came later pass a
  session by, and the turn of one that waits falls as its subject's others end. Nobody waits for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

TURN = 64
"""As many as may wait by default (`queue_limit`): in such a queue subjects take turns exactly, unless some
have waited for longer than it takes to fill it once."""


def standings(line: Sequence[tuple[int, str]], controlled: Mapping[str, int]) -> list[int]:
    """Where each session of a model's line stands, smaller first; equal ones go in the order of the line.

    line: (queue_order, subject) of each session that waits, by queue_order; those of the subject "" belong to
    nobody and take no turns. controlled: sessions of each subject that somebody controls, those that wait
    included; fewer than are in the line when that was read later, and then none has a place.
    """
    num_waiting = Counter(subject for _, subject in line)
    turns = {subject: max(0, controlled.get(subject, 0) - n) for subject, n in num_waiting.items()}
    found: list[int] = []
    for order, subject in line:
        if subject == "":
            found.append(order)
            continue
        found.append(order + TURN * turns[subject])
        turns[subject] += 1
    return found
