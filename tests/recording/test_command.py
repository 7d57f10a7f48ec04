"""`apfs record` as a user runs it: on mounts, inside `apfs exec`, as another user, and where there is nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.recording.recorder import record
from apfs.recording.tree import Directory
from apfs.scenario.reader import loads
from tests.conftest import apfs, sh

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534
RECORD = [sys.executable, "-m", "apfs", "record"]


@pytest.mark.parametrize("name", ["default", "kernel-doc", "migration-source", "secure-execution"])
def test_records_of_mounts(mount: Callable[..., Path], tmp_path: Path, name: str) -> None:
    file = tmp_path / "recorded.toml"
    first = mount(name)
    result = apfs("record", "--root", str(first), "--output", str(file), "--name", name)
    assert (result.stdout, result.stderr) == ("", "")
    assert apfs("scenario", "validate", str(file)).stdout.startswith(f"{file}: valid; ")
    again = apfs("record", "--root", str(mount(str(file))), "--name", name)
    assert again.stdout == file.read_text()
    script = "cd $1/sys && find . -type f -perm -4 ! -path '*/class/zcrypt/*' | sort | xargs grep -H '' | sha256sum"
    assert sh(script, str(first)).stdout == sh(script, str(tmp_path / "host1")).stdout


def test_a_mount_that_was_changed(mount: Callable[..., Path]) -> None:
    host = mount()
    script = """
        cd $1/sys/bus/ap/devices
        echo 0 > card05/05.0047/online
        echo vfio_ap > 06.0004/driver_override
        echo 06.0004 > 06.0004/driver/unbind
        echo 06.0004 > ../drivers_probe
        echo 0x47 > ../ap_domain
        echo plug 7 CEX7P slcf=1 > $1/ctl/console && echo scan > $1/ctl/console
    """
    sh(script, str(host))
    text = apfs("record", "--root", str(host)).stdout
    assert loads(text).name == "recorded"
    assert text.partition("[[card]]\n")[2] == (
        'adapter = 0x05\ntype = "CEX8C"\n\n[[card]]\nadapter = 0x06\ntype = "CEX8A"\n\n'
        '[[card]]\nadapter = 0x07\ntype = "CEX7P"\ntapq = {slcf = 1}\n\n[[card]]\nadapter = 0x0a\ntype = "CEX8P"\n\n'
        '[[queue]]\napqn = "05.0047"\nonline = false\n\n[[queue]]\napqn = "06.0004"\ndriver_override = "vfio_ap"\n\n'
        "[bus]\nap_domain = 0x47\n"
    )


def test_the_transcript_of_the_guide(mount: Callable[..., Path]) -> None:
    guide = Path(__file__).parents[2].joinpath("docs/scenarios.md").read_text()
    transcript = guide.partition("## Recording a machine\n")[2].partition("```console\n")[2].partition("```")[0]
    commands = [line.removeprefix("$ ") for line in transcript.splitlines() if line.startswith("$ ")]
    host = mount()
    assert (commands.pop(0), commands.pop()) == ("apfs mount /tmp/z", "apfs record --root /tmp/z --name lpar7")
    sh("\n".join(["set -e", *commands]).replace("cd /tmp/z/", f"cd {host}/"))
    shown = transcript.partition("--name lpar7\n")[2]
    assert apfs("record", "--root", str(host), "--name", "lpar7").stdout == shown


def test_inside_a_sandbox(mount: Callable[..., Path]) -> None:
    host = mount("migration-source")
    outside = apfs("record", "--root", str(host))
    inside = apfs("exec", "--mount", str(host), "--", *RECORD)
    assert (inside.stdout, inside.stderr) == (outside.stdout, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_an_ordinary_user() -> None:
    with tempfile.TemporaryDirectory() as name:
        host = Path(name, "host")
        host.mkdir()
        host.parent.chmod(0o755)
        apfs("mount", "--scenario", "kernel-doc", str(host))
        try:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            try:
                recording = record(Directory(host))
                with pytest.raises(PermissionError):
                    (host / "sys/bus/ap/scans").write_text("1")
            finally:
                os.seteuid(0)
                os.setegid(0)
            assert recording.text() == apfs("record", "--root", str(host)).stdout
        finally:
            apfs("umount", str(host))


def test_files_are_not_overwritten_silently(mount: Callable[..., Path], tmp_path: Path) -> None:
    host, file = mount("empty"), tmp_path / "recorded.toml"
    file.write_text("mine\n")
    result = apfs("record", "--root", str(host), "--output", str(file), status=1)
    assert result.stderr == f"apfs: {file} exists: --force overwrites it\n"
    assert file.read_text() == "mine\n"
    apfs("record", "--root", str(host), "--output", str(file), "--force")
    assert loads(file.read_text()).cards == {}
    missing = tmp_path / "none" / "recorded.toml"
    assert "No such file" in apfs("record", "--root", str(host), "--output", str(missing), status=1).stderr
    assert "--force needs --output" in apfs("record", "--root", str(host), "--force", status=2).stderr


@pytest.mark.parametrize("name", ["\udcff", "a\nb", "\x1b[31m"])
def test_names_are_printable(tmp_path: Path, name: str) -> None:
    file = tmp_path / "recorded.toml"
    result = apfs("record", "--output", str(file), "--name", name, status=2)
    assert "printable" in result.stderr
    assert not file.exists()


def test_a_file_that_cannot_be_written(mount: Callable[..., Path], tmp_path: Path) -> None:
    result = apfs("record", "--root", str(mount()), "--output", str(tmp_path / ("x" * 300)), status=1)
    assert result.stderr.endswith("File name too long\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("attribute", "text"), [("raw_hwtype", "999"), ("raw_hwtype", "-1"), ("max_msg_size", "-1"), ("depth", "-9")]
)
def test_numbers_that_no_machine_has(mount: Callable[..., Path], attribute: str, text: str) -> None:
    """Such cards, or such numbers, are left out: what is recorded can be booted."""
    card = "/sys/devices/ap/card05"

    class Altered(Directory):
        def read(self, path: str) -> bytes:
            if path == f"{card}/ap_functions":
                raise FileNotFoundError
            return text.encode() if path == f"{card}/{attribute}" else super().read(path)

    recorded = loads(record(Altered(mount())).text())
    assert sorted(recorded.cards) == [5, 6, 10][attribute == "raw_hwtype" :]


def test_nothing_of_the_machine_is_changed(mount: Callable[..., Path]) -> None:
    host = mount("kernel-doc")
    # Reading what a card has to be asked may make the bus scan (ap_bus_force_rescan). It has found all there is.
    (host / "sys/bus/ap/scans").write_text("1")
    before = (host / "ctl/journal").read_text()
    apfs("record", "--root", str(host))
    after = (host / "ctl/journal").read_text()
    assert after.startswith(before)
    assert {json.loads(line)["type"] for line in after.removeprefix(before).splitlines()} <= {"read"}


GONE = """
import sys
from apfs.cli.main import main
from apfs.mounts import table
from apfs.recording import recorder
record = recorder.record
def gone(*arguments):
    recorded = record(*arguments)
    table.unmount(sys.argv[3], lazy=True)
    return recorded
recorder.record = gone
main()
"""


def test_a_mount_that_is_gone_before_all_was_read(mount: Callable[..., Path], tmp_path: Path) -> None:
    host, output = mount(), tmp_path / "recorded.toml"
    command = [sys.executable, "-c", GONE, "record", "--root", str(host), "--output", str(output)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    said = f"apfs: {host} was unmounted, or its server has ended, before all of the machine was read\n"
    assert (result.stdout, result.stderr, result.returncode) == ("", said, 2)
    assert not output.exists()


def test_there_is_no_ap_bus(tmp_path: Path) -> None:
    result = apfs("record", "--root", str(tmp_path), status=2)
    assert result.stderr.startswith(f"apfs: {tmp_path}: there is no AP bus: looked for /sys/bus/ap, ")
    assert "does not exist" in apfs("record", "--root", str(tmp_path / "none"), status=2).stderr
    (tmp_path / "sys/bus/ap").mkdir(parents=True)
    assert "is a file" in apfs("record", "--root", __file__, status=2).stderr
    assert "it is empty" in apfs("record", "--root", "", status=2).stderr
    assert "it is empty" in apfs("record", "--output", "", status=2).stderr
    hint = f"did you mean --root {tmp_path}?"
    assert hint in apfs("record", "--root", str(tmp_path / "sys"), status=2).stderr


def test_an_impossible_machine(mount: Callable[..., Path], tmp_path: Path) -> None:
    host = mount("default")
    copy = tmp_path / "copy"
    for directory in ("sys/bus/ap", "sys/devices/ap"):
        shutil.copytree(host / directory, copy / directory, symlinks=True, ignore=unreadable)
    assert apfs("record", "--root", str(copy)).stdout == apfs("record", "--root", str(host)).stdout.replace(
        "\n[qci]", "vfio_ap = false\n\n[qci]"
    )
    (copy / "sys/bus/ap/config_time").chmod(0o644)
    (copy / "sys/bus/ap/config_time").write_text("1000\n")
    result = apfs("record", "--root", str(copy), status=1)
    assert "no scenario can describe this machine: config_time: expected a number in 5..120" in result.stderr


def unreadable(_directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("uevent", "bind", "unbind", "drivers_probe")]
