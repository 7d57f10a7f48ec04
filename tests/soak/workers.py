"""What the processes of a soak do to a mounted host, over and over. Each calls `did()` after every operation."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.fuzz.inputs import ADAPTERS, DOMAINS, damaged, text_for
from tests.hosts import M1, M2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random


MATRIX = "sys/devices/vfio_ap/matrix"
TYPE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough"
RARE = ("apmask", "aqmask", "console")
"""What may move 65,536 queues: not as often as the rest."""
MDEV_FILES = (
    *("assign_adapter", "assign_domain", "assign_control_domain", "ap_config", "remove", "uevent"),
    *("unassign_adapter", "unassign_domain", "unassign_control_domain"),
)
BUS_FILES = ("config_time", "poll_timeout", "poll_thread", "ap_domain", "drivers_probe", "scans", "uevent", *RARE[:2])


def put(path: Path, data: bytes) -> None:
    """Write once, whatever the answer is, as long as it is one."""
    try:
        fd = os.open(path, os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, data)
    except OSError:
        return
    finally:
        os.close(fd)


def get(path: Path) -> bytes:
    """Read a page, nothing if that is refused."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _queue(host: Path, random: Random) -> Path:
    apid, apqi = random.randrange(256), random.randrange(256)
    return host / f"sys/devices/ap/card{apid:02x}/{apid:02x}.{apqi:04x}"


def store(host: Path, random: Random, did: Callable[[], None]) -> None:
    """Write to some file what it may well understand, or what it does not."""
    kind = random.randrange(4)
    if kind == 0:
        path = host / "sys/bus/ap" / random.choice(BUS_FILES)
    elif kind == 1:
        path = host / MATRIX / random.choice((M1, M2)) / random.choice(MDEV_FILES)
    elif kind == 2:
        path = _queue(host, random) / random.choice(("online", "reset", "driver_override", "uevent", "request_count"))
    else:
        path = host / random.choice(
            (f"{TYPE}/create", "ctl/console", f"dev/vfio-ap/{M1}/guest", "sys/class/zcrypt/create")
        )
    if path.name not in RARE or random.random() < 0.02:
        put(path, text_for(str(path), random))
        did()


def read(host: Path, random: Random, did: Callable[[], None]) -> None:
    """Read attributes, links and stats of queues all over the host."""
    queue = _queue(host, random)
    for name in ("config", "online", "interrupt", "status"):
        get(queue / name)
        did()
    for name in ("bindings", "scans", "apmask", "features"):
        get(host / "sys/bus/ap" / name)
        did()
    with contextlib.suppress(FileNotFoundError):
        (queue / "subsystem").readlink()
    did()


def listing(host: Path, random: Random, did: Callable[[], None]) -> None:
    """List directories, now and then the one of all queues."""
    for place in (_queue(host, random), _queue(host, random).parent, host / MATRIX, host / "ctl", host / "sys/module"):
        with contextlib.suppress(FileNotFoundError):  # somebody may just have taken it away
            os.listdir(place)  # noqa: PTH208 -- names are enough
        did()
    if random.random() < 0.01:
        os.listdir(host / "sys/bus/ap/devices")  # noqa: PTH208
        did()


def session(host: Path, random: Random, did: Callable[[], None]) -> None:
    """Start a guest on a device with queues, take a migration stream of it, send it back, and end it."""
    uuid = f"{random.getrandbits(32):08x}-{M1[9:]}"
    client, mdev = host / "dev/vfio-ap" / uuid, host / MATRIX / uuid
    put(host / "ctl/console", b"modprobe vfio_ap")  # somebody may have taken it away
    put(host / TYPE / "create", uuid.encode())
    put(mdev / "assign_adapter", str(random.choice(ADAPTERS)).encode())
    put(mdev / "assign_domain", str(random.choice(DOMAINS)).encode())
    put(client / "guest", b"1")
    put(client / "migration_state", b"STOP_COPY")
    stream = get(client / "data_stream")
    put(client / "migration_state", b"RESUMING")
    put(client / "data_stream", damaged(stream, random) if random.random() < 0.5 else stream)
    put(client / "migration_state", b"RUNNING")
    get(host / "guests" / uuid / "sys/bus/ap/bindings")
    put(client / "guest", b"0")
    put(mdev / "remove", b"1")
    for _ in range(12):
        did()


def cards(host: Path, random: Random, did: Callable[[], None]) -> None:
    """Take four cards out, put others in, and look at their queues: that makes thousands of records."""
    apids = random.sample(range(8, 256), 4)
    for verb in ("unplug {}", "plug {} CEX8C"):
        for apid in apids:
            put(host / "ctl/console", verb.format(apid).encode())
            did()
        put(host / "ctl/console", b"scan")
        for apid in apids:
            for apqi in random.sample(range(256), 10):
                get(host / f"sys/devices/ap/card{apid:02x}/{apid:02x}.{apqi:04x}/online")
                did()


def program(host: Path, _random: Random, did: Callable[[], None]) -> None:
    """Run a program inside of `apfs exec` that opens the nodes of VFIO and makes ioctls."""
    script = (
        "import fcntl, os\n"
        "try: fd = os.open('/dev/vfio/vfio', os.O_RDWR)\n"
        f"except OSError: raise SystemExit({_NO_NODE})\n"
        "for number in range(0x3b64, 0x3ba0):\n"
        "    try: fcntl.ioctl(fd, number, b'x' * 64)\n"
        "    except OSError: pass\n"
    )
    command = [sys.executable, "-m", "apfs", "exec", "--mount", str(host), "--", "/usr/bin/python3", "-c", script]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_HANGS)
    assert done.returncode in (0, _NO_NODE), done
    for _ in range(0x3BA0 - 0x3B64):
        did()


_HANGS = 300
"""Seconds after which a program hangs."""
_NO_NODE = 3
"""What a program ends with if vfio is not loaded just then."""
JOBS = {"store": store, "read": read, "list": listing, "session": session, "cards": cards, "exec": program}
