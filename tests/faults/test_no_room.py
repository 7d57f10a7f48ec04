"""What apfs does on a file system that is full: a line, a status, and no file that is half of one."""

from __future__ import annotations

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

import pytest

from apfs.writing import write_new, write_whole
from tests.conftest import apfs, sh
from tests.faults.shortages import in_namespace, nothing_stays

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

NO_ROOM = "No space left on device"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A host on which something has happened."""
    mountpoint = tmp_path_factory.mktemp("host")
    apfs("mount", str(mountpoint))
    (mountpoint / "sys/bus/ap/apmask").write_text("-5")
    yield mountpoint
    apfs("umount", str(mountpoint))


@pytest.mark.parametrize("command", ["journal", "journal --json", "status", "status --json", "report", "record --root"])
def test_readers_on_a_full_device(host: Path, command: str) -> None:
    said = sh(f'"$1" -m apfs {command} "$2" > /dev/full', sys.executable, str(host), status=1).stderr
    assert said == f"apfs: standard output: {NO_ROOM}\n"


@pytest.mark.parametrize(
    "words", [("report", "--output", "/dev/full"), ("record", "--force", "--output", "/dev/full", "--root")]
)
def test_files_on_a_full_device(host: Path, words: tuple[str, ...]) -> None:
    assert apfs(*words, str(host), status=1).stderr == f"apfs: /dev/full: {NO_ROOM}\n"


def test_files_are_whole_or_not_there(host: Path, tmp_path: Path) -> None:
    script = f"""
        mkdir "$T/small"
        mount -t tmpfs -o size=4k none "$T/small"
        cd "$T/small"
        try() {{ apfs "$@"; echo $?; ls -A; }}
        try report --output new.html {host}
        try record --name "$(printf %5000s | tr ' ' x)" --root {host} --output new.toml
        echo before > old
        try report --output old {host}
        try record --name "$(printf %5000s | tr ' ' x)" --root {host} --force --output old
        cat old
        cd "$T"
        umount small
        rmdir small
    """
    result = in_namespace(script, tmp_path)
    assert result.stdout == "1\n1\n1\nold\n1\nold\nbefore\n", result
    files = ("new.html", "new.toml", "old", "old")
    assert result.stderr == "".join(f"apfs: {name}: {NO_ROOM}\n" for name in files)
    nothing_stays(tmp_path)


def test_a_file_that_is_written_again_keeps_its_mode(tmp_path: Path) -> None:
    old, link, new = (tmp_path / name for name in ("old", "link", "new"))
    old.touch(0o640)
    link.symlink_to(old)
    write_whole(link, "text")
    write_whole(new, "text")
    assert link.is_symlink()
    assert old.read_text() == new.read_text() == "text"
    assert old.stat().st_mode & 0o777 == 0o640
    (tmp_path / "made").touch()
    assert new.stat().st_mode == (tmp_path / "made").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "made", "new", "old"]


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_writes_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    """Also on a file system that has no hard links, such as FAT."""
    if not links:
        monkeypatch.setattr(os, "link", refuse_link)
    new, ready = tmp_path / "new", Barrier(8)

    def write(text: str) -> str:
        ready.wait()
        try:
            write_new(new, text)
        except FileExistsError:
            return ""
        return text

    with ThreadPoolExecutor(ready.parties) as threads:
        written = list(threads.map(write, map(str, range(ready.parties))))
    (text,) = filter(None, written)
    assert new.read_text() == text
    assert list(tmp_path.iterdir()) == [new]


def refuse_link(*_arguments: object, **_more: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # link(2): no such thing there


def test_a_link_that_leads_nowhere_is_no_new_file(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        write_new(link, "text")
    assert list(tmp_path.iterdir()) == [link]


IN_A_SMALL_PLACE = """
    export TMPDIR=/mnt
    mount -t tmpfs -o {} none /mnt
    apfs {}
    echo $?
    ls -A /mnt
"""


def check(result: subprocess.CompletedProcess[str], status: int, says: str) -> None:
    assert result.stdout == f"{status}\n", result
    assert result.stderr.startswith(f"apfs: {says}: ")
    assert result.stderr.endswith(f"{NO_ROOM}\n")
    assert result.stderr.count("\n") == 1


def test_no_room_for_a_mount_point(tmp_path: Path) -> None:
    result = in_namespace(IN_A_SMALL_PLACE.format("nr_inodes=2", "exec true"), tmp_path)
    check(result, 125, "a host could not be started")


@pytest.mark.parametrize("limit", ["size=4k", "nr_inodes=3", "nr_inodes=12"])
def test_no_room_for_libvirtd(tmp_path: Path, limit: str) -> None:
    result = in_namespace(IN_A_SMALL_PLACE.format(limit, "libvirtd"), tmp_path)
    check(result, 1, "libvirtd's files cannot be written")
