"""Listings: what they tell, and that names which may go are not remembered from them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TYPES: dict[int, Callable[[os.DirEntry[str]], bool]] = {
    stat.S_IFDIR: lambda entry: entry.is_dir(follow_symlinks=False),
    stat.S_IFLNK: lambda entry: entry.is_symlink(),
    stat.S_IFREG: lambda entry: entry.is_file(follow_symlinks=False),
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
