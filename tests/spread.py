"""How the tests are spread over the processes of pytest-xdist: by the file, with one exception."""

from __future__ import annotations

from typing import Final

from xdist.scheduler import LoadFileScheduling

__all__ = ["ByFile"]

_ON_THE_CLUSTER: Final = (
    "tests/browser/test_demo.py",
    "tests/conformance/",
    "tests/gateway/test_client_cluster.py",
    "tests/launch/test_client_cmd.py",
    "tests/launch/test_status.py",
    "tests/launch/test_up.py",
)
"""Where tests use the fixture `cluster` of conftest.py."""


class ByFile(LoadFileScheduling):
    """One process gets all that needs the shared cluster: each one more would start a cluster of its own, and
    keep it until the end."""

    def _split_scope(self, nodeid: str) -> str:
        return "cluster" if nodeid.startswith(_ON_THE_CLUSTER) else super()._split_scope(nodeid)
