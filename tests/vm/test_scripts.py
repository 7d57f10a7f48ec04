"""The scripts that make other machines are run by hand; what is cheap of them is tested here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TIMEOUT
from tests.tools.conftest import need

HERE = Path(__file__).parent


def run(script: str, *arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "APFS_VM_CACHE": str(cache)}
    command = [str(HERE / script), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)


def test_shellcheck_has_no_complaint() -> None:
    need("shellcheck")
    scripts = sorted(HERE.glob("*.sh"))
    assert [script.name for script in scripts] == ["chroot.sh", "enter.sh", "init.sh", "inside.sh", "run.sh"]
    result = subprocess.run(["shellcheck", *scripts], check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("run.sh", ()),
        ("run.sh", ("vax",)),
        ("run.sh", ("s390x", "bookworm", "bookworm", "true")),
        ("run.sh", ("uml", "bookworm", "bookworm", "true")),
        ("chroot.sh", ()),
        ("chroot.sh", ("--help",)),
        ("chroot.sh", ("../sid",)),
    ],
)
def test_wrong_usage_makes_nothing(script: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = run(script, *arguments, cache=tmp_path / "cache")
    assert result.returncode == 2
    assert f"usage: {script}" in result.stderr
    assert not (tmp_path / "cache").exists()


def test_a_file_tree_has_one_user(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root enters the file tree of another system")
    need("mmdebstrap")
    with (tmp_path / "trixie.lock").open("w") as lock:
        subprocess.run(["flock", "--nonblock", str(lock.fileno())], check=True, pass_fds=[lock.fileno()])
        result = run("chroot.sh", "trixie", cache=tmp_path)
    assert result.returncode == 2
    assert "another run is using" in result.stderr
    assert [place.name for place in tmp_path.iterdir()] == ["trixie.lock"]
