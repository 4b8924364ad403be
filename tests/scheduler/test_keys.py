"""Key names."""

from __future__ import annotations

import pytest

from scheduler.keys import PATTERNS, Keys
from scheduler.store.scripts import scripts


def test_every_key_has_the_hash_tag() -> None:
    """All keys of a cluster land in one slot."""
    keys = Keys("main")
    for name, pattern in PATTERNS.items():
        assert keys.key(name, "x" if "%s" in pattern else None).startswith("ts:{main}:")


@pytest.mark.parametrize("cluster", ["", "a{b", "a}b", "a b", "x" * 65, "a\n"])
def test_bad_cluster_names(cluster: str) -> None:
    """A name that would break the hash tag is refused."""
    with pytest.raises(ValueError, match="cluster"):
        Keys(cluster)


@pytest.mark.parametrize("name", scripts())
def test_every_script_documents_itself(name: str) -> None:
    """Header: what it does, its key, what it returns, its events."""
    own = scripts()[name].rsplit("\n-- KEYS[1]", 1)
    assert len(own) == 2, "no header"
    for word in ("Returns ", "Events "):
        assert f"\n-- {word}" in own[1]
