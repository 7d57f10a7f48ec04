"""The example that a user runs first."""

from __future__ import annotations

import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT
from tests.vmm.releases import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.usefixtures("for_root", "guest")
def test_migrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = ROOT / "mount-examples/libvirt/migrate.sh"
    done = subprocess.run([script], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.endswith("migrate: done\n")
    assert "AP type: source 0e, target 0d" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_sudo_is_told_at_once() -> None:
    """And not after the download."""
    user = ("--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    script = ROOT / "mount-examples/libvirt/migrate.sh"
    command = ["setpriv", "--no-new-privs", *user, script]
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert (said.returncode, said.stdout) == (2, ""), said
    first, *_, last = said.stderr.splitlines()
    assert first == "migrate: libvirt starts QEMU only for root, so this goes on with sudo"
    assert last == "migrate: that did not work: run it as root"


@pytest.fixture
def beside(guest: Path) -> Iterator[Path]:
    """A directory that can have hard links to the guest's files."""
    with tempfile.TemporaryDirectory(dir=guest.parent) as made:
        yield Path(made)


def test_the_guest_is_made_once(guest: Path, beside: Path) -> None:
    """Callers at the same instant wait for each other: one that finds a kernel may start it."""
    subprocess.run(["cp", "-al", guest / "root", guest / "done", beside], check=True)
    script = ROOT / "mount-examples/libvirt/make-guest.sh"

    def make(_: int) -> tuple[int, int]:
        done = subprocess.run([script, beside], check=False, timeout=60)
        return done.returncode, (beside / "kernel").stat().st_ino

    with ThreadPoolExecutor() as pool:
        made = list(pool.map(make, range(8)))
    assert made == [(0, made[0][1])] * 8
    assert (beside / "kernel").read_bytes() == (guest / "kernel").read_bytes()
