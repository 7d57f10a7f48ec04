"""Nothing stale: after a store has returned, nobody sees names, links or counts as they were before.

Also on kernels before 6.16, which do not know epochs: this one is sent a notification that it does not know either.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pyfuse3
import pytest

from apfs.fuse.cache import KernelCache
from tests.conftest import UUID, create_mdev
from tests.mounted.counted import OLDER_KERNEL, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAIRS = 500
MATRIX = "sys/devices/vfio_ap/matrix"
CREATE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create"


@pytest.fixture(params=["", OLDER_KERNEL], ids=["epochs", "none"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with counted(tmp_path / "z", request.param, "--foreground") as served:
        yield served.root


def store(path: Path, text: str) -> None:
    """Write once: nothing but this call may separate the change from the look at it."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def names(directory: Path) -> list[str]:
    """List a directory."""
    return [path.name for path in directory.iterdir()]


def test_mediated_devices(host: Path) -> None:
    device, links = host / MATRIX / UUID, host / "sys/bus/mdev/devices"
    for _ in range(PAIRS):
        store(host / CREATE, UUID)
        assert device.is_dir()
        assert names(links) == [UUID]
        assert (device / "matrix").read_text() == ""
        store(device / "remove", "1")
        assert not device.exists()
        assert not os.path.lexists(links / UUID)
        assert names(links) == []


def test_what_is_looked_at_from_inside_a_removed_directory(host: Path) -> None:
    for _ in range(PAIRS):
        directory = os.open(create_mdev(host), os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(directory) as entries:
                assert "matrix" in [entry.name for entry in entries]
            assert os.stat("matrix", dir_fd=directory).st_size == 4096
            store(host / MATRIX / UUID / "remove", "1")
            with pytest.raises(FileNotFoundError):
                os.stat("matrix", dir_fd=directory)
            with pytest.raises(FileNotFoundError):
                os.open("matrix", os.O_RDONLY, dir_fd=directory)
        finally:
            os.close(directory)


def test_inodes_that_the_kernel_did_not_know_are_invalidated_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the first look at one may have been on its way. Others were forgotten, and it does not go on."""
    tried: list[int] = []

    def invalidate(inode: int, *, attr_only: bool) -> None:
        assert attr_only
        tried.append(inode)
        if inode != 7:
            raise FileNotFoundError

    monkeypatch.setattr(pyfuse3, "invalidate_inode", invalidate)
    cache = KernelCache()
    for inode in (5, 7):
        cache.remember_attributes(pyfuse3.InodeT(inode))
    cache.changed()
    assert sorted(tried) == [5, 7]
    cache.changed()
    cache.changed()
    assert tried[2:] == [5]


def test_drivers_of_a_queue(host: Path) -> None:
    queue, mask = host / "sys/devices/ap/card05/05.0047", host / "sys/bus/ap/apmask"
    taken, kept = host / "sys/bus/ap/drivers/vfio_ap/05.0047", host / "sys/bus/ap/drivers/cex4queue/05.0047"
    for _ in range(PAIRS):
        store(mask, "-5")
        assert (queue / "driver").readlink().name == "vfio_ap"
        assert (queue / "status").read_text() == "unassigned\n"
        assert os.path.lexists(taken)
        assert not os.path.lexists(kept)
        store(mask, "+5")
        assert (queue / "driver").readlink().name == "cex4queue"
        assert not (queue / "status").exists()
        assert not os.path.lexists(taken)
        assert os.path.lexists(kept)


def test_cards_and_link_counts(host: Path) -> None:
    console, cards = host / "ctl/console", host / "sys/devices/ap"
    opened = os.open(cards, os.O_RDONLY | os.O_DIRECTORY)
    before = os.fstat(opened).st_nlink
    try:
        for _ in range(PAIRS):
            store(console, "plug 9 CEX8A")
            store(console, "scan")
            assert (cards / "card09/type").read_text() == "CEX8A\n"
            assert os.fstat(opened).st_nlink == cards.stat().st_nlink == before + 1
            store(console, "unplug 9")
            store(console, "scan")
            assert not (cards / "card09").exists()
            assert "card09" not in names(cards)
            assert os.fstat(opened).st_nlink == cards.stat().st_nlink == before
    finally:
        os.close(opened)


def test_modules(host: Path) -> None:
    console = host / "ctl/console"
    for _ in range(PAIRS // 10):
        store(console, "rmmod vfio_ap")
        assert not (host / MATRIX).exists()
        assert not (host / "sys/module/vfio_ap").exists()
        store(console, "modprobe vfio_ap")
        assert (host / MATRIX / "features").exists()
        assert (host / "sys/module/vfio_ap/refcnt").read_text() == "0\n"


def test_directories_that_are_reached_without_their_names(host: Path) -> None:
    console = host / "ctl/console"
    for name in ("sys/module/vfio_ap", "sys/devices/vfio_ap", "sys/bus/matrix"):
        opened = os.open(host / name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fstat(opened)
            store(console, "rmmod vfio_ap")
            with pytest.raises(FileNotFoundError):
                os.fstat(opened)
            with pytest.raises(FileNotFoundError):
                os.stat("uevent", dir_fd=opened)
            store(console, "modprobe vfio_ap")
            assert list(os.scandir(opened)) != []
        finally:
            os.close(opened)


@pytest.mark.parametrize(
    "look", [lambda file, _directory: file.stat(), lambda _file, directory: list(os.scandir(directory))]
)
def test_a_file_that_is_made_again_has_its_first_permissions(host: Path, look: Callable[[Path, Path], object]) -> None:
    """Even for whoever has the old one, which had others: the kernel knows both by one number."""
    driver, queue = host / "sys/bus/ap/drivers/cex4queue", host / "sys/devices/ap/card06/06.0004"
    file = queue / "online"
    for _ in range(PAIRS):
        file.chmod(0o666)
        look(file, queue)
        held = os.open(file, os.O_PATH)
        for name in ("unbind", "bind"):
            store(driver / name, "06.0004")
        assert stat.S_IMODE(os.fstat(held).st_mode) == 0o644
        os.close(held)
