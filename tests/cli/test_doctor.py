"""`apfs doctor` on this machine: what works, what is said of what does not, and that doing what is said helps."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.cli import capabilities
from apfs.kernel.profile import NEWEST
from tests.conftest import TIMEOUT, apfs, sh
from tests.rooms import Room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = ["python", "mount", "allow-other", "exec", "uevents", "vfio", "qemu"]
DOCTOR = (sys.executable, "-m", "apfs", "doctor")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def room() -> Iterator[Callable[..., Room]]:
    """Return a function that makes a room."""
    if os.geteuid():
        pytest.skip("only root can let things be missing for a test")
    with contextlib.ExitStack() as rooms:

        def make(*, users: bool = False) -> Room:
            return rooms.enter_context(Room(users=users))

        yield make


def problems(text: str, name: str) -> dict[str, str]:
    """Return the remedies that a report has for a capability, by their keys."""
    finding = json.loads(text)["capabilities"][name]
    return {problem["key"]: problem["remedy"] for problem in finding["problems"]}


def follow(room: Room, remedy: str) -> None:
    """Do, as root, what a remedy says between backticks."""
    (command,) = re.findall(r"as root[^`]*`([^`]+)`", remedy)
    room.run("sh", "-c", command)


def test_everything_works_here_for_root() -> None:
    if os.geteuid():
        pytest.skip("other users are not let in without user_allow_other in /etc/fuse.conf")
    report = json.loads(apfs("doctor", "--json").stdout)
    assert report["ok"] is True
    assert report["flags"] == []
    assert list(report["capabilities"]) == NAMES
    assert all(
        one == {"works": True, "said": "", "problems": [], "note": ""} for one in report["capabilities"].values()
    )
    assert report["emulated_kernel"] == NEWEST
    situation = report["situation"]
    assert list(situation) == ["place", "engine", "virtual", "uid", "user_namespace", "kernel", "summary"]
    assert (situation["uid"], situation["user_namespace"]) == (0, False)


def test_text_is_ascii_where_the_locale_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    assert apfs("doctor", "python").stdout.splitlines()[1] == "ok python       hosts in Python, without a mount"
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert apfs("doctor", "python").stdout.splitlines()[1] == "✓  python       hosts in Python, without a mount"
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    assert apfs("doctor", "python").stdout.splitlines()[1].startswith("ok ")


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, coloured: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert "\x1b[" not in apfs("doctor", "python").stdout
    master, slave = pty.openpty()
    subprocess.run([*DOCTOR, "python"], check=True, stdout=slave, timeout=TIMEOUT)
    os.close(slave)
    assert ("\x1b[32m" in os.read(master, 10000).decode()) == coloured
    os.close(master)


def test_only_what_is_asked_for_counts(tmp_path: Path) -> None:
    """Without bwrap nothing runs in a sandbox, and a mount works all the same."""
    (tmp_path / "fusermount3").symlink_to("/usr/bin/fusermount3")
    script = 'PATH="$2" "$1" -m apfs doctor --json '
    report = json.loads(sh(script + "vfio mount exec", sys.executable, str(tmp_path), status=1).stdout)
    assert {name: one["works"] for name, one in report["capabilities"].items()} == {
        "mount": True,
        "exec": False,
        "vfio": False,
    }
    assert report["capabilities"]["exec"]["problems"] == [
        {"key": "bwrap", "what": "bwrap is missing", "remedy": "install the package bubblewrap", "flags": []}
    ]
    assert report["capabilities"]["vfio"]["said"] == "needs apfs exec"
    assert json.loads(sh(script + "mount", sys.executable, str(tmp_path)).stdout)["ok"] is True


def test_qemu_counts_where_it_is_installed(tmp_path: Path) -> None:
    for program in ("bwrap", "sh", "env", "cat", "fusermount3"):
        (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    script = 'PATH="$2" "$1" -m apfs doctor --json '
    # Another user does not get at the directory with the programs, so that allow-other fails.
    report = json.loads(sh(script, sys.executable, str(tmp_path), status=None).stdout)
    assert list(report["capabilities"]) == NAMES[:-1]
    report = json.loads(sh(script + "qemu", sys.executable, str(tmp_path), status=1).stdout)
    assert report["capabilities"]["qemu"] == {
        "works": False,
        "said": "no qemu-system-s390x: apt install qemu-system-misc (Debian 12) or qemu-system-s390x (later)",
        "problems": [],
        "note": "",
    }


def test_qemu_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qemu-system-s390x").write_text("#!/bin/sh\necho what is this >&2\nexit 1\n")
    (tmp_path / "qemu-system-s390x").chmod(0o755)
    monkeypatch.setenv("APFS_QEMU", str(tmp_path / "qemu-system-s390x"))
    report = json.loads(apfs("doctor", "--json", "qemu", status=1).stdout)
    assert report["capabilities"]["qemu"]["said"] == "what is this"


def test_modules_of_the_current_directory_do_not_matter(tmp_path: Path) -> None:
    """Such as a checkout, whose name hides the package that is installed from it."""
    (tmp_path / "apfs").mkdir()
    (tmp_path / "trio.py").write_text("raise SystemExit(3)")
    command = [sys.executable, "-P", "-m", "apfs", "doctor", "--json", "exec", "vfio"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, cwd=tmp_path)
    assert json.loads(result.stdout)["ok"] is True


def test_unknown_capability() -> None:
    assert f"there are {', '.join(NAMES)}" in apfs("doctor", "nosuch", status=2).stderr


def test_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    apfs("doctor", status=None)
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize(("processor_seconds", "patience"), [(0.01, 60.0), (0.2, 60.0), (10.0, 3000.0)])
def test_slow_machines_get_more_time(processor_seconds: float, patience: float) -> None:
    assert capabilities.patience(60.0, processor_seconds) == pytest.approx(patience)


def test_letting_others_in(room: Callable[..., Room], tmp_path: Path) -> None:
    here = room()
    (tmp_path / "fuse.conf").write_text("#user_allow_other\n")
    here.run("mount", "--bind", str(tmp_path / "fuse.conf"), "/etc/fuse.conf")
    found = problems(here.run(*NOBODY, *DOCTOR, "--json", "mount", "allow-other", status=1), "allow-other")
    assert list(found) == ["user-allow-other"]
    follow(here, found["user-allow-other"])
    here.run(*NOBODY, *DOCTOR, "mount", "allow-other")


def test_device_without_permission(room: Callable[..., Room], tmp_path: Path) -> None:
    here = room()
    here.run("mknod", "-m", "600", str(tmp_path / "fuse"), "c", "10", "229")
    here.run("mount", "--bind", str(tmp_path / "fuse"), "/dev/fuse")
    found = problems(here.run(*NOBODY, *DOCTOR, "--json", "mount", status=1), "mount")
    assert list(found) == ["fuse-access"]
    follow(here, found["fuse-access"])
    here.run(*NOBODY, *DOCTOR, "mount")


def test_helper_without_set_user_id(room: Callable[..., Room], tmp_path: Path) -> None:
    here = room()
    here.run("sh", "-c", f"cat /usr/bin/fusermount3 > {tmp_path}/helper && chmod 755 {tmp_path}/helper")
    here.run("mount", "--bind", str(tmp_path / "helper"), "/usr/bin/fusermount3")
    found = problems(here.run(*NOBODY, *DOCTOR, "--json", "mount", status=1), "mount")
    assert list(found) == ["fusermount-setuid"]
    follow(here, found["fusermount-setuid"])
    here.run(*NOBODY, *DOCTOR, "mount")


def test_no_device(room: Callable[..., Room]) -> None:
    here = room()
    here.run("mount", "-t", "tmpfs", "none", "/dev")
    found = problems(here.run(*DOCTOR, "--json", "mount", status=1), "mount")
    assert list(found) == ["null-device", "fuse-device"]
    follow(here, found["null-device"])
    found = problems(here.run(*DOCTOR, "--json", "mount", status=1), "mount")
    assert list(found) == ["fuse-device"]


@pytest.mark.parametrize(
    ("option", "key"), [("--no-new-privs", "no-new-privileges"), ("--bounding-set=-sys_admin", "cap-sys-admin")]
)
def test_privileges_given_up(room: Callable[..., Room], option: str, key: str) -> None:
    here = room()
    found = problems(here.run("setpriv", option, *NOBODY, *DOCTOR, "--json", "mount", status=1), "mount")
    assert list(found) == [key]
    assert "setpriv" in found[key]
    here.run(*NOBODY, *DOCTOR, "mount")


def test_user_namespaces_forbidden(room: Callable[..., Room]) -> None:
    """The limit is that of a user namespace, so that the machine's stays as it is."""
    here = room(users=True)
    here.run("sh", "-c", "echo 0 > /proc/sys/user/max_user_namespaces")
    text = here.run(*NOBODY, *DOCTOR, "--json", "mount", "exec", status=1)
    assert json.loads(text)["capabilities"]["mount"]["works"] is True
    found = problems(text, "exec")
    assert list(found) == ["user.max_user_namespaces"]
    follow(here, found["user.max_user_namespaces"])
    here.run(*NOBODY, *DOCTOR, "mount", "exec", "uevents", "vfio")
