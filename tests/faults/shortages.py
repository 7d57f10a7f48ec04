"""Scripts in a mount namespace of their own, where the machine can be made to lack what it has."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT
from tests.faults.points import mounts_in

if TYPE_CHECKING:
    from pathlib import Path

NEEDS_ROOT = "only root can mount in a mount namespace of its own"


def in_namespace(script: str, tmp: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a mount namespace of its own, with `apfs` as a function and a TMPDIR."""
    if os.geteuid():
        pytest.skip(NEEDS_ROOT)
    script = f'python=$1; apfs() {{ "$python" -P -m apfs "$@"; }}; T=$2; {script}'
    command = ["unshare", "--mount", "bash", "-c", script, "bash", sys.executable, str(tmp)]
    env = {**os.environ, "TMPDIR": str(tmp), "LC_ALL": "C"}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)


def nothing_stays(tmp: Path) -> None:
    assert list(tmp.iterdir()) == []
    assert not mounts_in(tmp)
