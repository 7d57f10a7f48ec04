"""Device nodes inside `apfs exec`, as ordinary programs see them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, apfs
from tests.sandbox.conftest import PYTHON, exec_as_nobody
from tests.tools.conftest import EXAMPLE, inside, need

if TYPE_CHECKING:
    from collections.abc import Callable

    Mounter = Callable[..., Path]

NODES = ("/dev/vfio/vfio 10:196", "/dev/vfio/0 243:0", "/dev/vfio/devices/vfio0 242:0", "/dev/iommu 10:258")
ONE_USER = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sandbox knows one user and one group")
UNTIL = 'until_() { while ! eval "$1"; do :; done; }\n'
# For scripts: open a file and say what happened, and what fstat tells of it.
OPEN = """
import os, stat, sys
def attempt(path, flags=os.O_RDWR, **more):
    try:
        fd = os.open(path, flags, **more)
    except OSError as error:
        print(error.strerror)
        return
    found = os.fstat(fd)
    print("device" if stat.S_ISCHR(found.st_mode) else "file", found.st_rdev, found.st_uid, found.st_gid)
    return fd
"""


def python(script: str, *options: str, setup: str = "") -> list[str]:
    """Run a Python script that starts with OPEN, after a shell script, and return the lines that it printed."""
    result = inside(f'{setup}\nexec {PYTHON} -c "$1"', OPEN + script, options=options)
    return result.stdout.splitlines()


def test_they_are_character_devices() -> None:
    result = inside(
        """
        stat -c '%n %F %Hr:%Lr %a' /dev/vfio/vfio /dev/vfio/0 /dev/vfio/devices/vfio0 /dev/iommu /dev/z90crypt
        test -c /dev/vfio/0 && ! test -f /dev/vfio/0 && echo character
        find /dev/vfio -type c | sort
        ls -l /dev/vfio | sed -n 's/ root.*//p'
        """
    )
    assert result.stdout.splitlines() == [
        *("/dev/vfio/vfio character special file 10:196 666", "/dev/vfio/0 character special file 243:0 600"),
        *("/dev/vfio/devices/vfio0 character special file 242:0 600", "/dev/iommu character special file 10:258 660"),
        *("/dev/z90crypt character special file 10:259 600", "character"),
        *("/dev/vfio/0", "/dev/vfio/devices/vfio0", "/dev/vfio/vfio"),
        *("crw------- 1", "drwxr-xr-x 2", "crw-rw-rw- 1"),
    ]


@pytest.mark.parametrize("linked", ["dynamic", "static"])
def test_unmodified_programs_open_them(tmp_path: Path, linked: str) -> None:
    program = tmp_path / "nodes"
    flags = ["-static"] if linked == "static" else []
    source = Path(__file__).with_name("nodes.c")
    subprocess.run(["gcc", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", *flags, "-o", program, source], check=True)
    paths = [node.split()[0] for node in NODES]
    result = inside('program=$1; shift; for node; do echo "$node"; $program "$node"; done', str(program), *paths)
    expected = []
    for node in NODES:
        path, number = node.split()
        mode = {"vfio": "666", "iommu": "660"}.get(Path(path).name, "600")
        ways = ("stat", "lstat", "statx", "fstat", "fstatat", "statx of open file")
        expected += [path, *(f"{way}: device {number} {mode}" for way in ways)]
        # A device file has no ioctls before it is bound, a group has another set than a container and an iommufd.
        expected += ["poll: 1", "close-on-exec: 1", f"ioctl: {0 if path in ('/dev/vfio/vfio', '/dev/iommu') else -1}"]
    assert result.stdout.splitlines() == expected


def test_device_numbers_lead_to_devices() -> None:
    result = inside(
        """
        readlink /sys/dev/char/243:0 /sys/dev/char/242:0 /sys/dev/char/10:196
        readlink /sys/dev/char/1:3; test -e /sys/dev/char/1:3/uevent && ls /sys/dev/block > /dev/null && echo real
        echo 1 > /sys/devices/vfio_ap/matrix/*-*/remove
        ls /sys/dev/char | grep -c ^24[0-9]:
        echo node > /sys/class/zcrypt/create; readlink /sys/dev/char/240:0
        """,
        status=None,
    )
    assert result.stdout.splitlines() == [
        "../../devices/virtual/vfio/0",
        "../../devices/vfio_ap/matrix/669d9b23-fe1b-4ecb-be08-a2fabca99b71/vfio-dev/vfio0",
        "../../devices/virtual/misc/vfio",
        *("../../devices/virtual/mem/null", "real", "0", "../../devices/virtual/zcrypt/node"),
    ]


def test_all_real_device_numbers_are_there() -> None:
    names = inside("cd /sys/dev/char; for n in *; do echo $n $(readlink $n); done").stdout.splitlines()
    real = Path("/sys/dev/char")
    ours = {"10:258", "10:196", "10:259", "242:0", "243:0"}
    assert {line for line in names if line.split()[0] not in ours} == {
        f"{link.name} {link.readlink()}" for link in real.iterdir() if link.name not in ours
    }


def test_udevadm_finds_the_device_of_a_node() -> None:
    need("udevadm")
    result = inside(
        """
        udevadm info -q path -n /dev/vfio/0; udevadm info -q path -n /dev/z90crypt
        udevadm info -q name -p /class/vfio/0
        """
    )
    assert result.stdout.splitlines() == ["/devices/virtual/vfio/0", "/devices/virtual/misc/z90crypt", "vfio/0"]


@ONE_USER
def test_udev_rules_give_groups_and_modes() -> None:
    """A real systemd-udevd, which insists on character devices with the right numbers; and the rights that it gives."""
    need("udevadm", "setpriv")
    result = inside(
        f"""{UNTIL}
        mkdir -p /run/udev/rules.d
        cat > /run/udev/rules.d/99-test.rules <<'RULES'
SUBSYSTEM=="vfio", GROUP="disk", MODE="0660", SYMLINK+="mine"
SUBSYSTEM=="zcrypt", GROUP="disk", MODE="0640"
RULES
        /lib/systemd/systemd-udevd > /run/udevd.log 2>&1 &
        until_ 'udevadm control --ping 2> /dev/null'
        echo node > /sys/class/zcrypt/create
        udevadm trigger --action=add --subsystem-match=vfio --subsystem-match=zcrypt
        udevadm settle
        stat -c '%n %A %G' /dev/vfio/0 /dev/node
        readlink /dev/mine /dev/char/243:0
        udevadm info -q name -n /dev/mine
        for group in disk tape; do
            setpriv --reuid 1234 --regid $group --clear-groups {PYTHON} -c "$1"
        done
        grep -v 'Using default interface naming scheme' /run/udevd.log
        kill %1
        """,
        OPEN + 'attempt("/dev/mine")',
    )
    assert result.stdout.splitlines() == [
        *("/dev/vfio/0 crw-rw---- disk", "/dev/node crw-r----- disk", "vfio/0", "../vfio/0", "vfio/0"),
        *("device 62208 0 6", "Permission denied"),
    ]


@ONE_USER
def test_rights_are_those_of_the_node() -> None:
    """A user who is not root may open what is for all, and nothing else."""
    user = "setpriv --reuid=1234 --regid=1234 --clear-groups"
    script = 'for node in ("vfio", "0", "devices/vfio0"): attempt(f"/dev/vfio/{node}")\n'
    setup = f"""
        {user} {PYTHON} -c "$1"
        chown 1234 /dev/vfio/0; chmod 400 /dev/vfio/0; {user} {PYTHON} -c "$1"
        chmod 0 /dev/vfio/0
    """
    assert python(script, setup=setup) == [
        *("device 2756 0 0", "Permission denied", "Permission denied"),
        *("device 2756 0 0", "Permission denied", "Permission denied"),
        *("device 2756 0 0", "device 62208 1234 0", "device 61952 0 0"),
    ]


def test_any_path_below_dev_does() -> None:
    root = 65534 if os.geteuid() else 0  # of the machine: nobody in an ordinary user's sandbox
    assert python(
        """
os.chdir("/dev/vfio")
directory = os.open("/dev", os.O_PATH)
os.symlink("/dev/vfio/vfio", "/dev/absolute")
os.symlink("vfio/vfio", "/dev/relative")
for path in ("vfio", "./devices/../vfio", "/dev//vfio/./vfio", "/dev/absolute", "../relative"):
    attempt(path)
attempt("vfio/vfio", dir_fd=directory)
attempt("/dev/relative", os.O_RDWR | os.O_NOFOLLOW)
attempt("/dev/vfio/nosuch")
attempt("/dev/vfio/nosuch", os.O_RDWR | os.O_CREAT)
attempt("/dev/vfio/vfio/below")
attempt("/dev/vfio")
attempt("/dev/vfio/vfio", os.O_RDWR | os.O_CREAT)
attempt("/dev/null")
"""
    ) == [
        *["device 2756 0 0"] * 6,
        *("Too many levels of symbolic links", "No such file or directory", "Permission denied", "Not a directory"),
        *("Is a directory", "device 2756 0 0", f"device 259 {root} {root}"),
    ]


def test_what_opening_gives_is_what_the_device_says() -> None:
    script = 'first = attempt("/dev/vfio/0"); attempt("/dev/vfio/0"); attempt("/dev/z90crypt")'
    assert python(script) == ["device 62208 0 0", "Device or resource busy", "No such device or address"]


def test_numbers_of_descriptors() -> None:
    """They start high up, so that the filter knows them; where that is not allowed, an open node is a regular file."""
    script = """
a, b = attempt("/dev/vfio/vfio"), attempt("/dev/vfio/vfio")
print(a, b, os.get_inheritable(a))
os.close(a)
print(attempt("/dev/vfio/vfio"))
low = os.dup(b)
print(stat.S_ISCHR(os.fstat(low).st_mode))
"""
    assert python(script) == [
        *["device 2756 0 0"] * 2, "512 513 False", "device 2756 0 0", "512", "False"
    ]  # fmt: skip
    limited = python('print(attempt("/dev/vfio/vfio") < 100)', setup="ulimit -n 100")
    assert limited == ["file 0 0 0", "True"]


def test_exact_nodes_have_no_limits() -> None:
    """Opened for reading or writing only, and through a duplicate, they are devices, with the usual numbers."""
    script = """
lowest = os.dup(0); os.close(lowest)
for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR):
    fd = attempt("/dev/vfio/vfio", flags)
    print(fd == lowest); os.close(fd)
copy = os.dup(attempt("/dev/iommu"))
print(stat.S_ISCHR(os.fstat(copy).st_mode))
print(os.fstat(0).st_ino == os.stat("/proc/self/fd/0").st_ino)
"""
    assert python(script, "--nodes", "exact") == [
        *["device 2756 0 0", "True"] * 4, "device 1051138 0 0", "True", "True"
    ]  # fmt: skip


def test_nodes_can_be_regular_files() -> None:
    script = 'attempt("/dev/vfio/vfio"); attempt("/dev/vfio/0", os.O_RDONLY); print(os.path.exists("/dev/z90crypt"))'
    assert python(script, "--nodes", "files") == ["file 0 0 0", "file 0 0 0", "False"]


def test_reading_only_is_refused_by_default() -> None:
    """The kernel's own refusal, because the mount has no devices."""
    assert python('attempt("/dev/vfio/vfio", os.O_RDONLY)') == ["Permission denied"]


@pytest.mark.parametrize("network", ["private", "host"])
def test_nodes_of_zcrypt_come_and_go(mount: Mounter, network: str) -> None:
    host = mount()
    (host / "sys/class/zcrypt/create").write_text("before")
    script = f"""{UNTIL}
        stat -c '%n %F %t:%T' /dev/before
        echo later > /sys/class/zcrypt/create
        until_ '[ -c /dev/later ]'
        stat -c '%n %F %t:%T' /dev/later
        echo remove > /sys/class/zcrypt/later/uevent
        echo null > /sys/class/zcrypt/create
        echo last > /sys/class/zcrypt/create
        until_ '[ -c /dev/last ]'
        ls /dev | grep -xE 'before|later|last'
        for node in before later last null; do echo $node > /sys/class/zcrypt/destroy; done
        until_ '! [ -e /dev/last ]'
        ls /dev | grep -xE 'before|later|last|null'
    """
    result = apfs("exec", "--mount", str(host), "--net", network, "--", "bash", "-c", script)
    assert result.stdout.splitlines() == [
        *("/dev/before character special file f0:0", "/dev/later character special file f0:1"),
        *("before", "last", "later", "null"),
    ]
    assert not Path("/dev/before").exists()
    assert not Path("/dev/later").exists()


def follower_of(sandbox: int) -> int:
    """Return the process that follows the events of a host: of those that stay, it alone has joined the network."""
    children = Path(f"/proc/{sandbox}/task/{sandbox}/children").read_text().split()
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
    ours = Path("/proc/self/ns/net").readlink()
    (found,) = (pid for pid in children if names[pid] != "bwrap" and Path(f"/proc/{pid}/ns/net").readlink() != ours)
    return int(found)


def test_nodes_of_zcrypt_that_have_gone_before_they_are_made(mount: Mounter) -> None:
    """Whoever makes them is late: it is stopped meanwhile. Nothing is said, and nothing is there."""
    host = mount()
    script = f"{UNTIL} echo there; until_ '[ -c /dev/last ]'; ls -d /dev/gone /dev/goes 2>&1 | grep -c 'No such file'"
    command = [sys.executable, "-m", "apfs", "exec", "--mount", str(host), "--", "bash", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as box:
        try:
            assert box.stdout
            assert box.stdout.readline() == "there\n"
            follower = follower_of(box.pid)
            os.kill(follower, signal.SIGSTOP)
            for name in ("gone", "goes/too"):
                (host / "sys/class/zcrypt/create").write_text(name)
                (host / "sys/class/zcrypt/destroy").write_text(name.replace("/", "!"))
            (host / "sys/class/zcrypt/create").write_text("last")
            os.kill(follower, signal.SIGCONT)
            assert box.communicate(timeout=TIMEOUT) == ("2\n", "")
        finally:
            box.kill()


@pytest.mark.parametrize("name", ["n\xf6d\xe9", "of/m\xefne", os.fsdecode(b"\xff\xa0x")])
def test_nodes_of_zcrypt_with_names_of_any_bytes(mount: Mounter, name: str) -> None:
    host = mount()
    (host / "sys/class/zcrypt/create").write_bytes(os.fsencode(name))
    script = f"""{UNTIL}
        test -c "/dev/$1" || echo not there
        echo later$1 > /sys/class/zcrypt/create
        until_ "[ -c \"/dev/later$1\" ]"
        echo later${{1/\\//!}} > /sys/class/zcrypt/destroy
        until_ "! [ -e \"/dev/later$1\" ]"
    """
    assert apfs("exec", "--mount", str(host), "--", "bash", "-c", script, "bash", name).stdout == ""


@pytest.mark.parametrize("when", ["before", "inside"])
def test_nodes_of_zcrypt_whose_place_is_taken_are_not_there(mount: Mounter, when: str) -> None:
    """Such names neither keep a sandbox from being made, nor change directories of the real machine."""
    names = ("a", "a/b", "null", "shm/x", "../up", "p/q", "p/q/r", "s/t/u", "apfs", "vfio/vfio", "last")
    host = mount()
    create = "for name; do echo $name > /sys/class/zcrypt/create; done;"
    if when == "before":
        for name in names:
            (host / "sys/class/zcrypt/create").write_text(name)
        create = ""
    script = f"""{UNTIL} {create}
        until_ '[ -c /dev/last ]'
        cd /dev && stat -c '%n %F' a null p/q s/t/u
        ls -d shm/x ../up 2>&1 | grep -c 'No such file'
        head -c 3 /dev/apfs/ctl/kmsg | wc -c
    """
    said = apfs("exec", "--mount", str(host), "--", "bash", "-c", script, "bash", *names)
    assert said.stdout.splitlines() == [
        *(
            "a character special file",
            "null character special file",
            "p/q character special file",
            "s/t/u character special file",
        ),
        *("2", "0"),
    ]
    assert not Path("/dev/shm/x").exists()  # noqa: S108 -- it is what must not be made


def test_nodes_come_and_go_with_modules_and_devices() -> None:
    result = inside(
        """
        echo 1 > /sys/devices/vfio_ap/matrix/*-*/remove; ls /dev/vfio /dev/vfio/devices
        rmmod vfio_ap mdev vfio_iommu_type1 vfio; ls /dev/vfio/vfio
        modprobe vfio_ap; test -c /dev/vfio/vfio && exec 5<> /dev/vfio/vfio && echo open
        """
    )
    assert result.stdout.splitlines() == ["/dev/vfio:", "vfio", "open"]


def test_a_sandbox_in_a_sandbox_has_them_too() -> None:
    inner = f"{sys.executable} -m apfs exec"
    script = f"""
        {inner} --mount /dev/apfs -- {PYTHON} -c "$1"
        {inner} --scenario {EXAMPLE} -- {PYTHON} -c "$1" 2> /dev/null
    """
    # With another host the outer supervisor has nothing to do.
    lines = inside(script, OPEN + 'attempt("/dev/vfio/vfio")').stdout.splitlines()
    assert lines == ["device 2756 0 0", "file 0 0 0"]


def test_an_ordinary_user_has_them_too(tmp_path: Path) -> None:
    """Numbers of users are those of the user namespace: who mounted is root in it."""
    script = f"""{UNTIL}
        test -c /dev/iommu; echo node > /sys/class/zcrypt/create; until_ "[ -c /dev/node ]"
        {PYTHON} -c "$1"
    """
    said = exec_as_nobody(tmp_path, "bash", "-c", script, "bash", f"{OPEN}attempt('/dev/iommu')")
    assert said == "device 1051138 0 0\n"


def test_modules_are_listed() -> None:
    script = """
        lsmod | grep -E '^(Module|vfio|mdev|zcrypt)'
        cat /dev/apfs/ctl/sandbox/modules | grep ^mdev
        modinfo -F depends vfio_ap; modinfo vfio-ap mdev | grep -E '^(name|version)'
        rmmod vfio_ap; lsmod | grep -cE '^vfio_ap'; kmod list | grep mdev
        cmp /proc/modules /dev/apfs/ctl/sandbox/modules 2> /dev/null || test ! -e /proc/modules
        """
    assert inside(script).stdout.splitlines() == [
        "Module                  Size  Used by",
        "vfio_ap                57344  0",
        "vfio_iommu_type1       49152  0",
        "vfio                   69632  2 vfio_ap,vfio_iommu_type1",
        "mdev                   28672  1 vfio_ap",
        "zcrypt_cex4            20480  0",
        "zcrypt                118784  1 zcrypt_cex4",
        "mdev 28672 1 vfio_ap, Live 0x0000000000000000",
        *("mdev,vfio", "name:           vfio_ap", "version:        0.1", "name:           mdev"),
        *("0", "mdev                   28672  0"),
    ]
