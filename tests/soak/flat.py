"""A million operations and 10,000 sessions on one host without a mount: `python -m tests.soak.flat [SHARE]`.

After each tenth it says how much memory the process has, how many records the journal, and how many objects there are
beside records. From when the journal is full all of them stay the same.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from apfs.host import Host
from apfs.journal.records import Record
from apfs.scenario.reader import load
from apfs.testing.files import Shell
from tests.hosts import CREATE, M1, MATRIX

OPERATIONS, SESSIONS, ROUNDS = 1_000_000, 10_000, 10
_EACH = 10
"""Operations in one turn: stores and reads."""


def session(shell: Shell, number: int) -> None:
    """Make a device with a queue, run a guest on it, take its stream, and end all of it."""
    uuid = f"{number:08x}-{M1[9:]}"
    client, mdev = f"/dev/vfio-ap/{uuid}", f"{MATRIX}/{uuid}"
    shell.write(CREATE, uuid)
    shell.write(f"{mdev}/assign_adapter", "5")
    shell.write(f"{mdev}/assign_domain", "4")
    shell.write(f"{client}/guest", "1")
    shell.write(f"{client}/migration_state", "STOP_COPY")
    assert shell.read(f"{client}/data_stream")
    shell.write(f"{client}/migration_state", "RUNNING")
    shell.read(f"/guests/{uuid}/sys/bus/ap/bindings")
    shell.write(f"{client}/guest", "0")
    shell.write(f"{mdev}/remove", "1")


def memory() -> float:
    """Return the resident MiB of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def objects() -> int:
    """Return how many objects there are that are no records of a journal."""
    gc.collect()
    return sum(not isinstance(thing, Record) for thing in gc.get_objects())


def main() -> None:
    """Do it, or a share of it."""
    share = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    shell = Shell(Host(load("default")))
    shell.echo("-5", "/sys/bus/ap/apmask")
    turns = int(OPERATIONS * share) // ROUNDS // _EACH
    print("operations", "sessions", "MiB", "records", "objects beside records", sep="\t")
    for done in range(1, ROUNDS + 1):
        for turn in range(turns):
            for number in range(_EACH // 2):
                shell.write("/sys/bus/ap/poll_timeout", f"{100_000 + number}")
                shell.read("/sys/devices/ap/card06/06.0004/online")
            if turn % (turns // max(1, int(SESSIONS * share) // ROUNDS)) == 0:
                session(shell, turn)
        figures = done * turns * _EACH, done * int(SESSIONS * share) // ROUNDS
        records = shell.host.journal.last - shell.host.journal.dropped
        print(*figures, f"{memory():.1f}", records, objects(), sep="\t", flush=True)


if __name__ == "__main__":
    main()
