"""Listings: what they tell, and that the kernel does not remember names from them that may go."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.mounted.counted import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Every reply that is made about a file leaves a line in the log.
COUNTING = """
import sys
from apfs.fuse.operations import Operations
make = Operations._reply
def reply(*arguments):
    print("made a reply", file=sys.stderr)
    return make(*arguments)
Operations._reply = reply
"""
TYPES: dict[int, Callable[[os.DirEntry[str]], bool]] = {
    stat.S_IFDIR: lambda entry: entry.is_dir(follow_symlinks=False),
    stat.S_IFLNK: lambda entry: entry.is_symlink(),
    stat.S_IFREG: lambda entry: entry.is_file(follow_symlinks=False),
    stat.S_IFCHR: lambda entry: not (entry.is_dir() or entry.is_symlink() or entry.is_file()),
}


def below(directory: Path) -> Iterator[os.DirEntry[str]]:
    """List everything below a directory."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from below(directory / entry.name)


def test_numbers_and_types_are_those_of_stat(mount: Callable[..., Path]) -> None:
    seen = 0
    for entry in below(mount()):
        found = os.lstat(entry.path)
        assert entry.inode() == found.st_ino
        assert TYPES[stat.S_IFMT(found.st_mode)](entry)
        seen += 1
    assert seen > 400


def test_a_listing_does_not_bring_back_old_permissions(mount: Callable[..., Path]) -> None:
    mask = mount() / "sys/bus/ap/apmask"
    mask.chmod(0o600)
    assert mask in mask.parent.iterdir()
    assert stat.S_IMODE(mask.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["ap_domain", "apmask", "scans"])
def test_a_listing_does_not_give_others_what_one_was_given(mount: Callable[..., Path], name: str) -> None:
    """The first of those that are alike, one in the middle, and the last."""
    if os.geteuid():
        pytest.skip("only root can give files away")
    directory = mount() / "sys/bus/ap"
    files = sorted(file.name for file in directory.iterdir() if file.is_file())
    os.chown(directory / name, 1234, 5678)
    assert sorted(file.name for file in directory.iterdir() if file.is_file()) == files
    found = {file: (directory / file).stat() for file in files}
    assert {file for file in files if (found[file].st_uid, found[file].st_gid) == (1234, 5678)} == {name}
    os.chown(directory / name, 0, 0)
    assert {(file.stat().st_uid, file.stat().st_gid) for file in directory.iterdir()} == {(0, 0)}


def test_files_that_look_alike_share_a_reply(tmp_path: Path) -> None:
    with counted(tmp_path / "z", COUNTING) as served:

        def replies() -> int:
            list(directory.iterdir())
            return served.log.read_text().count("made a reply\n")

        directory = served.root / "sys/devices/ap/card05/05.0004"
        files = sum(file.is_file() and not file.is_symlink() for file in directory.iterdir())
        before = replies()
        assert 0 < replies() - before < files / 2
