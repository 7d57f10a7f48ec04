"""Random stories: the same is done to a mounted host and to one in this process, and they never look different.

With epochs and without, when the kernel remembers less (test_cache.py). Much is done to few names, so that they go and
come back; and some are looked at by those who have the directory open, which may have been removed.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from apfs.errors import KernelError
from apfs.fuse.machine import ThisMachine
from apfs.host import Host
from apfs.scenario.reader import load
from apfs.sysfs.entries import READ
from apfs.testing.files import Shell
from tests.hosts import CREATE, M1, MATRIX
from tests.model.test_names_and_uevents import STORES
from tests.mounted.counted import OLDER_KERNEL, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from apfs.sysfs.entries import Stat

CHAPTERS, STEPS = 14, 350
NAMES = 12
"""How many names a chapter is about: few, so that each is looked at before and after it changes."""
HELD = 8
"""How many directories are open at a time."""
COMMON = (
    (CREATE, M1),
    (f"{MATRIX}/{M1}/remove", "1"),
    (f"/dev/vfio-ap/{M1}/guest", "1"),
    (f"/dev/vfio-ap/{M1}/guest", "0"),
    ("/sys/bus/ap/apmask", "-5"),
    ("/sys/bus/ap/apmask", "+5"),
    ("/ctl/console", "plug 5 CEX8C"),
    ("/ctl/console", "unplug 5"),
    ("/ctl/console", "scan"),
    ("/ctl/console", "modprobe vfio_ap"),
)
"""Stores that are made more often than the others, which would leave nothing to look at."""
MDEV, GUEST = f"{MATRIX[1:]}/{M1}", f"guests/{M1}"
DIRECTORIES = (
    "sys/devices/ap",
    "sys/devices/ap/card05",
    "sys/devices/ap/card05/05.0047",
    "sys/bus/ap/devices",
    "sys/bus/ap/drivers/cex4queue",
    "sys/bus/ap/drivers/vfio_ap",
    MATRIX[1:],
    MDEV,
    f"{MDEV}/vfio-dev",
    "sys/bus/mdev",
    "sys/bus/mdev/devices",
    "sys/module/vfio_ap",
    "sys/class/vfio",
    "sys/kernel/iommu_groups",
    "sys/kernel/iommu_groups/0",
    "dev/vfio",
    f"dev/vfio-ap/{M1}",
    f"ctl/migration/{M1}",
    GUEST,
    f"{GUEST}/sys/bus/ap",
    f"{GUEST}/sys/devices/ap/card05",
)
"""Those that come and go, or have names that do."""
ATTRIBUTE_SIZE = 4096

Look = tuple[int, int, int, int]


def answer(call: Callable[[], object]) -> object:
    """Return what a call returns, or the name of the errno that it is refused with."""
    try:
        return call()
    except (KernelError, OSError) as error:
        return errno.errorcode[error.errno or 0]


def write(path: Path, text: str) -> int:
    """Write once."""
    fd = os.open(path, os.O_WRONLY)
    try:
        return os.write(fd, text.encode())
    finally:
        os.close(fd)


def look(node: int, found: Stat) -> Look:
    """Return what os.lstat tells of a node."""
    return node, found.mode, found.nlink, found.size


def seen(found: os.stat_result) -> Look:
    """Return the same of what it told."""
    return found.st_ino, found.st_mode, found.st_nlink, found.st_size


class Story:
    """Both hosts, and the directories of the mounted one that are open."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)  # noqa: S311 -- no secret
        host = Host(load("default"))
        host.real_machine = ThisMachine()
        self.model = Shell(host)
        self.tree = self.model.host.tree
        self.held: list[tuple[int, int, str]] = []
        """Descriptors of open directories, their nodes, and where they were."""
        self.names: dict[str, set[str]] = {directory: set() for directory in DIRECTORIES}
        """The names that each directory has had."""
        self.places: list[tuple[str, str]] = []
        """What the chapter is about: directories, each with a name."""
        self.gone = 0
        """How often something was looked at that was not there."""

    def close(self) -> None:
        """Close the directories."""
        for opened, _, _ in self.held:
            os.close(opened)

    def begin_chapter(self) -> None:
        """Choose some of the names that there are, or were."""
        for directory, names in self.names.items():
            with suppress(KernelError):
                names.update(entry.name for entry in self.tree.readdir(self.tree.resolve(directory)))
        directories = self.random.choices(DIRECTORIES, k=NAMES)
        self.places = [(path, self.random.choice(["", *sorted(self.names[path])])) for path in directories]

    def step(self) -> None:
        """Do something, or look at something."""
        chance = self.random.random()
        directory, name = self.random.choice(self.places)
        if chance < 0.05:
            self.store()
        elif chance < 0.06:
            self.chmod(f"{directory}/{name}")
        elif chance < 0.12:
            self.hold(directory)
        elif self.held and chance < 0.5:
            self.look_from(*self.random.choice(self.held))
        else:
            path = f"{directory}/{name}"
            self.compare(answer(lambda: self.tree.resolve(path)), str(self.root / path), None)

    def store(self) -> None:
        """Do one of the stores to both hosts."""
        path, text = self.random.choice(COMMON if self.random.random() < 0.7 else STORES)
        expected = answer(lambda: self.model.write(path, text))
        assert answer(lambda: write(self.root / path[1:], text)) == expected, (path, text)

    def chmod(self, path: str) -> None:
        """Change the permissions of a file on both hosts."""
        with suppress(KernelError):
            node = self.tree.resolve(path)
            if stat.S_ISREG(self.tree.stat(node).mode):
                mode = self.random.choice((0o600, 0o640, 0o644, 0o444))
                self.tree.setattr(node, mode=mode)
                (self.root / path).chmod(mode)

    def hold(self, path: str) -> None:
        """Open a directory; close another one if there are many."""
        with suppress(KernelError):
            node = self.tree.resolve(path)
            self.held.append((os.open(self.root / path, os.O_RDONLY | os.O_DIRECTORY), node, path))
            if len(self.held) > HELD:
                os.close(self.held.pop(self.random.randrange(HELD))[0])

    def look_from(self, opened: int, directory: int, path: str) -> None:
        """Compare an open directory, and what is at a name in it."""
        assert answer(lambda: seen(os.fstat(opened))) == answer(lambda: self.remaining(directory)), path
        names = [name for place, name in self.places if place == path and name] or sorted(self.names[path])
        if names:
            name = self.random.choice(names)
            self.compare(answer(lambda: self.tree.lookup(directory, name)), name, opened)

    def remaining(self, node: int) -> Look:
        """Return what those are told who have a node that may have been removed."""
        try:
            return look(node, self.tree.stat(node))
        except KernelError:
            return look(node, self.tree.remains(node).stat)

    def compare(self, node: object, path: str, opened: int | None) -> None:
        """Compare what is at a path of the mounted host with a node, or the name of an errno."""
        found = answer(
            lambda: seen(os.lstat(path) if opened is None else os.stat(path, dir_fd=opened, follow_symlinks=False))
        )
        if not isinstance(node, int):
            self.gone += 1
            assert found == node, path
            return
        expected = self.tree.stat(node)
        assert found == look(node, expected), path
        if stat.S_ISLNK(expected.mode):
            assert os.readlink(path, dir_fd=opened) == self.tree.readlink(node)
        elif stat.S_ISDIR(expected.mode):
            assert sorted(self.listed(path, opened)) == sorted(entry.name for entry in self.tree.readdir(node))
        elif expected.size == ATTRIBUTE_SIZE:
            assert answer(lambda: self.read(path, opened)) == answer(lambda: self.read_node(node)), path

    def listed(self, path: str, opened: int | None) -> list[str]:
        """List a directory of the mounted host."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=opened)
        try:
            return os.listdir(fd)  # noqa: PTH208 -- a descriptor
        finally:
            os.close(fd)

    def read(self, path: str, opened: int | None) -> bytes:
        """Read an attribute of the mounted host."""
        fd = os.open(path, os.O_RDONLY, dir_fd=opened)
        try:
            return os.read(fd, ATTRIBUTE_SIZE)
        finally:
            os.close(fd)

    def read_node(self, node: int) -> bytes:
        """Read the same attribute of the other."""
        file = self.tree.open(node, READ)
        try:
            return bytes(file.read(0, ATTRIBUTE_SIZE))
        finally:
            file.close()


@pytest.fixture(params=["", OLDER_KERNEL], ids=["epochs", "none"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with counted(tmp_path / "z", request.param, "--foreground") as served:
        yield served.root


@pytest.mark.parametrize("seed", range(2))
def test_a_mounted_host_looks_like_one_that_nobody_remembers(root: Path, seed: int) -> None:
    story = Story(root, seed)
    try:
        for _ in range(CHAPTERS):
            story.begin_chapter()
            for _ in range(STEPS):
                story.step()
    finally:
        story.close()
    assert story.gone > CHAPTERS * STEPS / 10
