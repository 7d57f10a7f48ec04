"""How many requests everyday commands cost: a request more is a slower mount, and shows here without a clock.

Kernels before 6.16 do not know epochs, so what they look up is counted on its own, here on every kernel.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import UUID
from tests.mounted.counted import EPOCHS, FORGETS_MODES, OLDER_KERNEL, Counted, counted, newer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUEUE = "sys/devices/ap/card05/05.0004"
ALWAYS, SOMETIMES, LINKS = 10, 3, 2
"""What is in it: files that every queue has, files that not every queue has, links."""
FILES = ALWAYS + SOMETIMES

# What a pyfuse3 that is not as expected looks like. Neither may cost more than speed.
OTHER_LOOP = "import pyfuse3, trio, types; pyfuse3.trio = types.SimpleNamespace(**vars(trio))"
OTHER_LAYOUT = "import apfs.fuse.listing as listing; listing.EntryAttributes = type('Other', (), {'st_ino': 0})"


@contextmanager
def known(root: Path, prelude: str = "") -> Iterator[Counted]:
    """Mount a host of which the kernel knows what it finds out once per mount."""
    with counted(root, prelude) as mounted:
        mounted.of("cat", "sys/bus/ap/ap_domain")  # that there is no flush
        mounted.of("sh", "-c", "echo 1 > sys/bus/ap/poll_thread")  # ... and no extended attributes
        yield mounted


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Counted]:
    if not EPOCHS:
        pytest.skip("before Linux 6.16 names are looked up that are remembered since")
    with known(tmp_path / "host") as mounted:
        yield mounted


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Counted]:
    with known(tmp_path / "older", OLDER_KERNEL) as mounted:
        yield mounted


@pytest.fixture(params=["", OLDER_KERNEL], ids=["newest", "older"])
def any_host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Counted]:
    with known(tmp_path / "any", request.param) as mounted:
        yield mounted


def test_read_a_file(any_host: Counted) -> None:
    cat = ("cat", "sys/bus/ap/ap_interrupts")
    assert any_host.of(*cat) == {"LOOKUP": 1, "OPEN": 1, "READ": 2}
    assert any_host.of(*cat) == {"OPEN": 1, "GETATTR": 1, "READ": 2}  # reading made its time of access old


def test_write_a_file(any_host: Counted) -> None:
    echo = ("sh", "-c", "echo 40 > sys/bus/ap/config_time")
    assert any_host.of(*echo) == {"LOOKUP": 1, "OPEN": 1, "WRITE": 1}
    asked = {"GETATTR": 1} if FORGETS_MODES else {}
    assert any_host.of(*echo) == {"OPEN": 1, "WRITE": 1} | asked


def test_older_kernels_look_up_what_can_go_away_and_what_is_in_it(older: Counted) -> None:
    """A card, a queue and each file of it; not the directories that always exist."""
    cat = ("cat", f"{QUEUE}/config")
    older.of(*cat)
    assert older.of(*cat) == {"LOOKUP": 3, "OPEN": 1, "READ": 2}
    paths = [f"{QUEUE}/{name}" for name in ("config", "chkstop", "online")]
    assert older.of("stat", *paths) == {"LOOKUP": 3 * len(paths)}
    older.of("sh", "-c", "echo -6 > sys/bus/ap/apmask")
    assert older.of("stat", *paths)["LOOKUP"] == 3 * len(paths)


def test_older_kernels_write_a_file(older: Counted) -> None:
    echo = ("sh", "-c", f"echo > {QUEUE}/driver_override")
    assert older.of(*echo) == {"LOOKUP": 5, "OPEN": 1, "WRITE": 1}
    assert older.of(*echo) == {"LOOKUP": 3, "OPEN": 1, "WRITE": 1}


def listxattr(files: int) -> dict[str, int]:
    """What a newer `ls -l` asks for besides: which extended attributes each file has."""
    return {"LISTXATTR": files} if newer("ls") else {}


def knows_access_lists(path: Path) -> bool:
    """Whether this kernel says of a file that it has no access list; 6.1 says that there are none here."""
    try:
        os.getxattr(path, "system.posix_acl_access")
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def test_older_kernels_list_a_directory_of_files(older: Counted) -> None:
    """ls names each of them with its whole path, more than once; and fewer times if there can be no access lists."""
    older.of("stat", QUEUE)
    lookups = 102 if newer("ls") else 100 if knows_access_lists(older.root / QUEUE / "online") else 59
    listing = {"OPENDIR": 1, "READDIRPLUS": 2, "LOOKUP": lookups, "READLINK": LINKS} | listxattr(1 + FILES + LINKS)
    assert older.of("ls", "-l", QUEUE) == listing
    assert older.of("ls", "-l", QUEUE) == listing


def test_older_kernels_search_a_directory(older: Counted) -> None:
    older.of("stat", QUEUE)
    older.of("sh", "-c", "grep -rs . sys/bus/mdev || true")
    grep = ("grep", "-r", ".", QUEUE)
    lookups = 21 if newer("grep") else 23
    counts = {"OPENDIR": 2, "STATFS": 1, "READDIRPLUS": 2, "LOOKUP": lookups, "OPEN": FILES, "READ": FILES + 1}
    assert older.of(*grep) == counts
    assert older.of(*grep) == counts


def test_older_kernels_walk(older: Counted) -> None:
    """Each directory is looked up when it is looked at, opened and, before findutils 4.10, left.

    In 6.1, one does not fit into the buffer.
    """
    find = ("find", "sys/devices/ap", "-type", "f")
    directories = 3 + 12
    listings = 2 * (1 + directories) + (0 if EPOCHS else 1)
    walking = {"OPENDIR": 2 + directories, "READDIRPLUS": listings, "STATFS": 1}
    times = 2 if newer("find") else 3
    assert older.of(*find) == walking | {"LOOKUP": 2 + times * directories}
    assert older.of(*find) == walking | {"LOOKUP": times * directories, "GETATTR": 1}


def test_older_kernels_list_a_directory_with_as_many_requests(older: Counted) -> None:
    older.of("stat", "sys/bus/ap/devices")
    assert older.of("ls", "-f", "sys/bus/ap/devices") == {"OPENDIR": 1, "READDIRPLUS": 2}


def test_after_names_have_changed_paths_are_looked_up_again(host: Counted) -> None:
    host.of("cat", f"{QUEUE}/config")
    assert "LOOKUP" not in host.of("cat", f"{QUEUE}/config")
    host.of("sh", "-c", "echo -6 > sys/bus/ap/apmask")
    assert host.of("cat", f"{QUEUE}/config")["LOOKUP"] == len(QUEUE.split("/")) + 1
    assert "LOOKUP" not in host.of("cat", f"{QUEUE}/config")


def test_list_a_directory_of_files(host: Counted) -> None:
    host.of("stat", QUEUE)
    ls = ("ls", "-l", QUEUE)
    looked_up = SOMETIMES + LINKS  # the others are known from the listing
    listing = {"OPENDIR": 1, "READDIRPLUS": 2, "READLINK": LINKS} | listxattr(1 + FILES + LINKS)
    assert host.of(*ls) == listing | {"LOOKUP": looked_up}
    assert host.of(*ls) == listing | {"GETATTR": 1}


def test_list_a_directory_of_links(host: Counted) -> None:
    """A listing has no attributes of what may go away; a name that was looked up stays known."""
    host.of("stat", "sys/bus/ap/devices")
    links = 15
    assert host.of("ls", "-f", "sys/bus/ap/devices") == {"OPENDIR": 1, "READDIRPLUS": 2}
    ls = ("ls", "-l", "sys/bus/ap/devices")
    listing = {"OPENDIR": 1, "GETATTR": 1, "READDIRPLUS": 2, "READLINK": links} | listxattr(1 + links)
    assert host.of(*ls) == listing | {"LOOKUP": links}
    assert host.of(*ls) == listing


def test_search_a_directory(host: Counted) -> None:
    """Each file is read once, but for the one that grep reads on to see whether it is binary."""
    host.of("stat", QUEUE)
    host.of("sh", "-c", "grep -rs . sys/bus/mdev || true")  # once per mount, the kernel finds out about lseek
    grep = ("grep", "-r", ".", QUEUE)
    listing = {"OPENDIR": 2, "STATFS": 1, "READDIRPLUS": 2}  # where it starts, it opens twice
    reading = {"OPEN": FILES, "READ": FILES + 1}
    assert host.of(*grep) == listing | reading | {"LOOKUP": SOMETIMES + LINKS}
    assert host.of(*grep) == listing | reading | {"GETATTR": 4}


def test_walk(host: Counted) -> None:
    """Directories are looked up once; what is in them is known from their listings."""
    find = ("find", "sys/devices/ap", "-type", "f")
    cards, queues = 3, 12
    opened = 2 + cards + queues  # where it starts, it opens twice
    walking = {"OPENDIR": opened, "READDIRPLUS": 2 * (opened - 1), "STATFS": 1}
    assert host.of(*find) == walking | {"LOOKUP": 2 + cards + queues}
    assert host.of(*find) == walking | {"GETATTR": 1 + cards + queues}


def list_twice(host: Counted) -> list[dict[str, int]]:
    """Make a mediated device; return how many requests `mdevctl list` makes on the host, and makes again."""
    create = "sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create"
    host.of("sh", "-c", f"echo {UUID} > {create}")
    command = [sys.executable, "-m", "apfs", "exec", "--mount", str(host.root), "--", "bash"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        counts = []
        for script in ("echo ready", "mdevctl list | tr -d '\\n'; echo", "mdevctl list | tr -d '\\n'; echo"):
            before = len(host.requests())
            shell.stdin.write(f"{script}\n")
            shell.stdin.flush()
            assert shell.stdout.readline().startswith("ready" if script == "echo ready" else UUID)
            counts.append(host.counts(before))
        shell.stdin.close()
    return counts[1:]


def test_list_mediated_devices(host: Counted) -> None:
    links = 3 if newer("mdevctl") else 4
    assert list_twice(host) == [
        {"LOOKUP": 7, "OPENDIR": 1, "READDIRPLUS": 2, "READLINK": links},
        {"OPENDIR": 1, "GETATTR": 1, "READDIRPLUS": 2, "READLINK": links},
    ]


def test_older_kernels_list_mediated_devices(older: Counted) -> None:
    lookups, links = (22, 3) if newer("mdevctl") else (26, 4)
    assert list_twice(older) == [{"LOOKUP": lookups, "OPENDIR": 1, "READDIRPLUS": 2, "READLINK": links}] * 2


@pytest.mark.parametrize("prelude", [OTHER_LOOP, OTHER_LAYOUT])
def test_without_pyfuse3s_internals_it_works_and_warns_once(tmp_path: Path, prelude: str) -> None:
    with counted(tmp_path / "host", prelude, "--foreground") as mounted:
        mounted.of("grep", "-q", "30", "sys/bus/ap/config_time")
        mounted.of("ls", "-lR", "sys")
        (warning,) = mounted.warnings()
        assert "will take longer" in warning
