"""The example that a user runs first."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.vmm.releases import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("guest")
def test_migrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = ROOT / "mount-examples/libvirt/migrate.sh"
    done = subprocess.run([script], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.endswith("migrate: done\n")
    assert "AP type: source 0e, target 0d" in done.stdout
    assert list(tmp_path.iterdir()) == []
