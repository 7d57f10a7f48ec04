"""How tests/run.sh spreads the tests over processes: what is slow to make is made, and used, in one of them."""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling

TOGETHER = ("tests/containers/", "tests/testing/")
"""Folders that one process runs: their files share an image, or environments, that take minutes to make."""


class ByFile(LoadScopeScheduling):
    """Gives the tests of a file to one process, and those of some folders, too."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in TOGETHER if file.startswith(folder)), file)
