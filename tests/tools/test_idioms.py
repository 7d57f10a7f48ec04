"""Shell idioms: one script, once on the machine's real sysfs and once on the emulated one, with the same results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import sh
from tests.tools.conftest import inside, need

SCRIPT = str(Path(__file__).with_name("idioms.sh"))


def sections(output: str) -> dict[str, list[str]]:
    """Split the script's output by idiom."""
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith("-- "):
            found[line.removeprefix("-- ")] = current = []
        else:
            current.append(line)
    return found


def test_idioms_have_the_same_results_on_real_sysfs() -> None:
    if os.geteuid():
        pytest.skip("only root writes into the real sysfs")
    need("inotifywait", "rsync")
    real = sections(sh(f"bash {SCRIPT} /sys/bus/platform/drivers_autoprobe").stdout)
    emulated = sections(inside(f"bash {SCRIPT} /sys/bus/ap/drivers_autoprobe").stdout)
    assert sh("cat /sys/bus/platform/drivers_autoprobe").stdout == "1\n"
    assert len(real) > 40
    assert real == emulated
