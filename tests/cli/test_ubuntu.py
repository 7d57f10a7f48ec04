"""What an ordinary user of Ubuntu is told, whose user namespaces AppArmor leaves without capabilities: a simulation.

See restricted.c: bwrap makes its namespace without them, and what then fails is up to the kernel and to bwrap.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, let_in

if TYPE_CHECKING:
    from collections.abc import Callable

    Runner = Callable[..., subprocess.CompletedProcess[str]]

HERE = Path(__file__).parent
SETTING = "kernel.apparmor_restrict_unprivileged_userns"
# As users of Ubuntu 24.04 report them. The first goes on "Operation not permitted" there; bwrap 0.8 of Debian 12 does
# not take the errno from the kernel's answer, and prints that of an earlier call.
NO_NETWORK = "bwrap: loopback: Failed RTM_NEWADDR: "
NO_USERS = "bwrap: setting up uid map: Permission denied"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("restricted")
    let_in(directory)
    command = ["gcc", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-O1"]
    subprocess.run([*command, "-o", directory / "restricted.so", HERE / "restricted.c"], check=True)
    return directory / "restricted.so"


@pytest.fixture
def setting(tmp_path: Path) -> Path:
    """The value of the sysctl."""
    let_in(tmp_path)
    path = tmp_path / "setting"
    path.write_text("1\n")
    return path


@pytest.fixture
def run(library: Path, setting: Path) -> Runner:
    """Return a function that runs a command of apfs as an ordinary user of Ubuntu."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    env = {**os.environ, "LC_ALL": "C", "LD_PRELOAD": str(library), "RESTRICTED": str(setting)}

    def apfs(*words: str, status: int) -> subprocess.CompletedProcess[str]:
        command = [*user, sys.executable, "-m", "apfs", *words]
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)
        assert result.returncode == status, result
        return result

    return apfs


def test_doctor_says_what_is_in_the_way_and_what_helps(run: Runner, setting: Path) -> None:
    report = json.loads(run("doctor", "--json", "mount", "exec", "vfio", status=1).stdout)
    found = report["capabilities"]
    assert {name: one["works"] for name, one in found.items()} == {"mount": True, "exec": False, "vfio": False}
    assert found["exec"]["said"].startswith(NO_NETWORK)
    assert (found["exec"]["note"], report["flags"]) == ("", [])
    (problem,) = found["exec"]["problems"]
    assert problem["key"] == SETTING
    assert problem["what"] == f"AppArmor takes all rights from user namespaces ({SETTING}=1)"
    (name, value) = re.findall(r"as root on the machine, `sysctl -w (\S+)=(\d)`", problem["remedy"])[0]
    assert name == SETTING
    setting.write_text(value)
    run("doctor", "mount", "exec", "uevents", "vfio", status=0)


@pytest.mark.parametrize(("options", "reason"), [((), NO_NETWORK), (("--net", "host"), NO_USERS)])
def test_exec_says_the_same(run: Runner, options: tuple[str, ...], reason: str) -> None:
    lines = run("exec", *options, "--", "true", status=125).stderr.splitlines()
    assert lines[0].startswith(reason)
    what = f"AppArmor takes all rights from user namespaces ({SETTING}=1)"
    profile = "or an AppArmor profile for bwrap (docs/containers.md has one)"
    helps = f"as root on the machine, `sysctl -w {SETTING}=0`, {profile}"
    assert lines[1:] == [f"apfs: the sandbox could not be created (bwrap's reason is above); {what}: {helps}"]
