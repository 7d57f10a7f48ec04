"""What is kept of a failed test's hosts, also of those that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs import Host, Shell, load
from apfs.testing import kept
from tests.conftest import UUID

if TYPE_CHECKING:
    from pathlib import Path


def test_a_guest_that_has_ended(tmp_path: Path) -> None:
    shell = Shell(Host(load("migration-source")))
    guest = shell.guest(UUID)
    shell.echo(0, f"/dev/vfio-ap/{UUID}/guest")
    page, said = kept.journal(str(tmp_path), "a test", "guest", guest)
    assert page is None
    assert said.startswith("cannot be kept: ENOENT: ")
    page, said = kept.report(str(tmp_path), "a test", {"host": shell, "guest": guest})
    assert page == tmp_path / "a test.html"
    assert said.startswith("guest cannot be drawn, the guest has ended: ENOENT: ")
