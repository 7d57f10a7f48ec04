"""What programs see of a mount is what they would see of sysfs: types, modes, errors, and nothing stale."""

from __future__ import annotations

import errno
import mmap
import os
import select
import stat
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import UUID, create_mdev, sh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Mounter = Callable[..., Path]


def error_of(call: Callable[[], object]) -> str:
    """Name of the error that a call fails with, empty if it does not."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_stat(mount: Mounter) -> None:
    host = mount()
    attribute = (host / "sys/bus/ap/apmask").stat()
    assert (stat.S_IFMT(attribute.st_mode), stat.S_IMODE(attribute.st_mode)) == (stat.S_IFREG, 0o644)
    assert (attribute.st_size, attribute.st_blocks, attribute.st_blksize, attribute.st_nlink) == (4096, 0, 4096, 1)
    directory = (host / "sys/devices/ap").stat()
    assert (stat.S_IFMT(directory.st_mode), directory.st_size, directory.st_nlink) == (stat.S_IFDIR, 0, 5)
    link = host / "sys/bus/ap/devices/05.0004"
    assert link.lstat().st_size == 0
    assert link.readlink().as_posix() == "../../../devices/ap/card05/05.0004"
    assert link.resolve() == host / "sys/devices/ap/card05/05.0004"


def test_file_system_name_is_the_only_way_to_tell(mount: Mounter) -> None:
    host = mount()
    assert sh('stat -f -c "%s %l" "$1"', str(host / "sys")).stdout == "4096 255\n"


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda sys: (sys / "bus/ap/new").touch(), "EACCES"),
        (lambda sys: os.open(sys / "bus/ap/apmask", os.O_WRONLY | os.O_CREAT | os.O_EXCL), "EEXIST"),
        (lambda sys: (sys / "new").mkdir(), "EPERM"),
        (lambda sys: (sys / "bus/ap/apmask").unlink(), "EPERM"),
        (lambda sys: (sys / "bus/ap/devices").rmdir(), "EPERM"),
        (lambda sys: (sys / "bus/ap/apmask").rename(sys / "bus/ap/mask"), "EPERM"),
        (lambda sys: (sys / "new").symlink_to("bus"), "EPERM"),
        (lambda sys: (sys / "new").hardlink_to(sys / "bus/ap/apmask"), "EPERM"),
        (lambda sys: os.mkfifo(sys / "new"), "EPERM"),
        (lambda sys: (sys / "bus/ap/uevent").read_text(), "EACCES"),
        (lambda sys: (sys / "bus/ap/features").write_text("x"), "EACCES"),
        (lambda sys: (sys / "bus/ap/nosuch").read_text(), "ENOENT"),
        (lambda sys: (sys / "bus/ap/apmask/x").read_text(), "ENOTDIR"),
        (lambda sys: (sys / "bus/ap").read_text(), "EISDIR"),
        (lambda sys: (sys / "bus/ap/apmask").write_text("zz"), "EINVAL"),
        (lambda sys: os.truncate(sys / "bus/ap/apmask", 0), ""),
        (lambda sys: os.truncate(sys / "bus/ap/apmask", 10**6), ""),
        (lambda sys: os.utime(sys / "bus/ap/apmask"), ""),
        (lambda sys: (sys / "bus/ap/apmask").chmod(0o600), ""),
    ],
)
def test_refusals(mount: Mounter, call: Callable[[Path], object], expected: str) -> None:
    host = mount()
    before = (host / "sys/bus/ap/apmask").read_text()
    assert error_of(lambda: call(host / "sys")) == expected
    assert (host / "sys/bus/ap/apmask").read_text() == before


def test_chmod_lasts_and_chown_too(mount: Mounter) -> None:
    path = mount() / "sys/bus/ap/apmask"
    path.chmod(0o640)
    os.chown(path, -1, os.getgid())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_times_that_are_set_last_until_the_node_goes(mount: Mounter) -> None:
    host = mount()
    mask, directory = host / "sys/bus/ap/apmask", create_mdev(host)
    for path in (mask, directory, directory / "matrix"):
        os.utime(path, ns=(10**18 + 1, 10**18 + 2))
    mask.write_text("-0x20")
    mask.read_text()
    sh('touch -m -d @5.25 "$1"', str(mask))
    for path, times in ((mask, (10**18 + 1, 5_250_000_000)), (directory, (10**18 + 1, 10**18 + 2))):
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == times
    (directory / "remove").write_text("1")
    assert create_mdev(host).stat().st_mtime_ns == (host / "sys/bus").stat().st_mtime_ns


def test_the_first_change_of_a_file_makes_all_its_times_the_present_one(mount: Mounter) -> None:
    """As in sysfs, even if it is chmod(2)."""
    path = mount() / "sys/bus/ap/apmask"
    begun = time.time_ns()
    path.chmod(0o640)
    first = path.stat()
    assert begun <= first.st_atime_ns == first.st_mtime_ns == first.st_ctime_ns <= time.time_ns()
    path.chmod(0o600)
    second = path.stat()
    assert first.st_atime_ns == second.st_atime_ns == second.st_mtime_ns < second.st_ctime_ns <= time.time_ns()
    os.utime(path, (5, 5))
    os.utime(path)  # the kernel's clock for that is some milliseconds late
    third = path.stat()
    assert 10**18 < third.st_atime_ns == third.st_mtime_ns <= time.time_ns()


def test_writes_ignore_offset_and_flags(mount: Mounter) -> None:
    host = mount()
    config_time = host / "sys/bus/ap/config_time"
    for flags, text in ((os.O_APPEND, b"40"), (os.O_TRUNC, b"41\n"), (0, b"42 and more")):
        descriptor = os.open(config_time, os.O_WRONLY | flags)
        assert os.write(descriptor, text) == len(text)
        assert os.pwrite(descriptor, text, 7) == len(text)
        os.close(descriptor)
        assert config_time.read_text() == text[:2].decode() + "\n"


def test_long_empty_and_nul(mount: Mounter) -> None:
    path = mount() / "sys/bus/ap/config_time"
    descriptor = os.open(path, os.O_WRONLY)
    assert os.write(descriptor, b"50" + b" " * 4998) == 4096
    assert os.write(descriptor, b"") == 0
    assert os.write(descriptor, b"51\x00garbage") == 10
    os.close(descriptor)
    assert path.read_text() == "51\n"


def test_only_private_mappings_are_possible(mount: Mounter) -> None:
    """sysfs has none. The kernel asks the server about neither (fuse_file_mmap)."""
    with (mount() / "sys/bus/ap/config_time").open("r+b", buffering=0) as file:
        assert error_of(lambda: mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_SHARED)) == "ENODEV"
        with mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE) as mapped:
            assert mapped[:] == b"30\n".ljust(4096, b"\0")


def test_reading_again_from_the_start_is_fresh(mount: Mounter) -> None:
    host = mount()
    with (host / "sys/bus/ap/scans").open("rb", buffering=0) as scans:
        assert scans.read() == b"1\n"
        (host / "sys/bus/ap/scans").write_text("scan")
        assert scans.read() == b""
        assert os.pread(scans.fileno(), 10, 1) == b"\n"
        scans.seek(0)
        assert scans.read(1) == b"2"
        assert scans.read() == b"\n"


def test_poll_reports_an_event_until_the_first_read(mount: Mounter) -> None:
    with (mount() / "sys/bus/ap/scans").open("rb", buffering=0) as scans:
        poller = select.poll()
        poller.register(scans, select.POLLIN | select.POLLPRI)
        assert poller.poll(0) == [(scans.fileno(), select.POLLIN | select.POLLPRI | select.POLLERR)]
        scans.read()
        assert poller.poll(0) == [(scans.fileno(), select.POLLIN)]


def test_listing_has_dots_and_types(mount: Mounter) -> None:
    host = mount()
    listing = sh('ls -aF "$1"', str(host / "sys/bus/ap/drivers/cex4card")).stdout.split()
    assert listing == ["./", "../", "bind", "card05@", "card06@", "card0a@", "module@", "uevent", "unbind"]
    with os.scandir(host / "sys/bus/ap/devices") as entries:
        assert all(entry.is_symlink() for entry in entries)


def test_nothing_is_stale_after_a_store(mount: Mounter) -> None:
    host = mount()
    apmask, queue = host / "sys/bus/ap/apmask", host / "sys/devices/ap/card05/05.0004"
    for _ in range(50):
        apmask.write_text("-5")
        assert (queue / "driver").readlink().name == "vfio_ap"
        assert (queue / "status").read_text() == "unassigned\n"
        assert not (queue / "online").exists()
        apmask.write_text("+5")
        assert (queue / "driver").readlink().name == "cex4queue"
        assert not (queue / "status").exists()
        assert (queue / "online").read_text() == "1\n"


def test_removed_device_gives_enodev_for_ever(mount: Mounter) -> None:
    host = mount()
    mdev = create_mdev(host)
    with (mdev / "matrix").open("rb", buffering=0) as held:
        assert held.read() == b""
        (mdev / "remove").write_text("1")
        assert not mdev.exists()
        create_mdev(host)
        assert error_of(lambda: held.seek(0) and held.read()) == ""
        held.seek(0)
        assert error_of(held.read) == "ENODEV"
    assert (mdev / "matrix").read_text() == ""


def test_removed_directory_is_empty(mount: Mounter) -> None:
    """For those who are in it, or have it open, as in sysfs; stat(2) goes on to tell of what they have."""
    host = mount()
    mdev = create_mdev(host)
    inode, above = mdev.stat().st_ino, mdev.parent.stat().st_ino
    script = """
        cd "$1"; exec 5< . 6< matrix 7< vfio-dev
        echo 1 > remove
        ls -ai
        ls -A /proc/self/fd/5 /proc/self/fd/7
        stat -c '%F %a %h' .
        stat -L -c '%F %a %h %s' /proc/self/fd/6
        cat <&6 2>&1; cat matrix 2>&1; cd vfio-dev 2>&1; echo 1 > remove; stat -c %i ..
    """
    done = sh(script, str(mdev))
    lines = [line.rpartition(": ")[2].strip() for line in (done.stdout + done.stderr).splitlines()]
    assert lines == [
        *(f"{inode} .", f"{above} .."),
        *("/proc/self/fd/5:", "", "/proc/self/fd/7:"),
        "directory 755 2",
        "regular file 444 1 4096",
        *("No such device", "No such file or directory", "No such file or directory"),
        str(above),
        "Permission denied",  # bash would make the file
    ]


@pytest.mark.parametrize("name", ["n\xf6d\xe9".encode(), b"\xff\xa0x", b"of/m\xefne"])
def test_names_are_bytes(mount: Mounter, name: bytes) -> None:
    host = mount()
    shown = os.fsdecode(name.replace(b"/", b"!"))
    nodes, links = host / "sys/devices/virtual/zcrypt", host / "sys/class/zcrypt"
    assert (links / "create").write_bytes(name) == len(name)
    assert [path.name for path in nodes.iterdir()] == [shown]
    for link in (links / shown, host / "sys/dev/char/240:0"):
        assert link.readlink().as_posix() == f"../../devices/virtual/zcrypt/{shown}"
    assert (nodes / shown / "uevent").read_bytes().endswith(b"DEVNAME=" + name + b"\n")
    assert os.fsencode(f"add@/devices/virtual/zcrypt/{shown}\n") in (host / "ctl/uevents").read_bytes()
    assert not os.path.lexists(nodes / f"{shown}\xe9")
    (links / "destroy").write_bytes(os.fsencode(shown))
    assert not os.path.lexists(nodes)


def test_hot_unplug_and_plug(mount: Mounter) -> None:
    host = mount("default", "--clock", "manual")
    console, card = host / "ctl/console", host / "sys/devices/ap/card06"
    console.write_text("unplug 6")
    assert card.exists()
    console.write_text("scan")
    assert not card.exists()
    assert sh('ls "$1"', str(host / "sys/bus/ap/drivers/cex4card")).stdout.count("card") == 2
    console.write_text("plug 6 CEX7P\n")
    (host / "sys/bus/ap/scans").write_text("1")
    assert (card / "type").read_text() == "CEX7P\n"


@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        ("card06", ("unplug 6", "scan", "plug 6 CEX7P", "scan")),
        ("card06/06.0004", ("unplug 6", "scan", "plug 6 CEX7P", "scan")),
        ("card06/06.0004", ("remove-domain 4", "scan", "add-domain 4", "scan")),
        ("card06", ("tapq 6 at=12", "scan")),
    ],
)
def test_a_card_or_queue_that_comes_back_is_not_the_old_one(mount: Mounter, name: str, verbs: tuple[str, ...]) -> None:
    host = mount("default", "--clock", "manual")
    directory = host / "sys/devices/ap" / name
    for _ in range(2):
        inode = directory.stat().st_ino
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        for verb in verbs:
            (host / "ctl/console").write_text(verb)
        assert directory.stat().st_ino != inode
        assert (os.fstat(held).st_ino, os.fstat(held).st_nlink) == (inode, 2)
        assert error_of(lambda held=held: os.stat("config", dir_fd=held)) == "ENOENT"  # type: ignore[misc]
        assert list(os.scandir(held)) == []
        assert (directory / "config").read_text() == "1\n"
        assert "config" in [path.name for path in directory.iterdir()]
        os.close(held)
        verbs = ("tapq 6 at=13", "scan") if len(verbs) == 2 else verbs


def test_vfio_nodes_open_but_do_nothing(mount: Mounter) -> None:
    host = mount()
    create_mdev(host)
    nodes = [host / "dev/vfio" / name for name in ("vfio", "0", "devices/vfio0")]
    assert [stat.S_IMODE(node.stat().st_mode) for node in nodes] == [0o666, 0o600, 0o600]
    for node in nodes:
        assert error_of(node.read_bytes) == "EINVAL"
        assert error_of(lambda node=node: node.write_bytes(b"x")) == "EINVAL"  # type: ignore[misc]
    (host / f"sys/devices/vfio_ap/matrix/{UUID}/remove").write_text("1")
    assert [node.exists() for node in nodes] == [True, False, False]


def test_injected_fault_hits_n_accesses(mount: Mounter) -> None:
    host = mount()
    (host / "ctl/console").write_text("fault /sys/bus/ap/features EIO 2")
    features = host / "sys/bus/ap/features"
    assert [error_of(features.read_text) for _ in range(3)] == ["EIO", "EIO", ""]


def test_real_time_passes(mount: Mounter) -> None:
    host = mount()
    (host / "sys/bus/ap/config_time").write_text("5")
    scans = host / "sys/bus/ap/scans"
    before = int(scans.read_text())
    poller = select.poll()
    while int(scans.read_text()) == before:
        poller.poll(100)  # nothing is registered: yields the processor
    assert int(scans.read_text()) == before + 1


def test_largest_host_lists_everything_once(mount: Mounter) -> None:
    host = mount("largest")
    names = os.listdir(host / "sys/bus/ap/devices")  # noqa: PTH208
    assert len(names) == len(set(names)) == 65536 + 256
    assert (host / "sys/bus/ap/devices/ff.00ff/config").read_text() == "1\n"
