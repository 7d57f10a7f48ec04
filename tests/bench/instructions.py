"""Instructions that apfs's own part of an operation takes, counted by callgrind: within 2 % the same on any machine.

usage: python -m tests.bench.instructions

Handlers run without a mount, so that neither the kernel nor libfuse is in it. Of two runs of different length the
difference is taken; start-up cancels out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pyfuse3

from apfs.fuse.operations import Operations
from apfs.host import Host
from apfs.scenario.reader import loads
from tests.bench.servers import MDEV, QUEUE, scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

FEW, MANY = 100, 1100
_CONTEXT = cast("pyfuse3.RequestContext", SimpleNamespace(pid=1))


def answer(handler: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 -- whatever the handler returns
    """Run a handler, which never waits."""
    try:
        handler.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError


def operations() -> dict[str, Callable[[int], None]]:
    """Return what is counted: functions of a running number."""
    host = Host(loads(scenario(8, 16)))
    served = Operations(host, lambda: None)

    def inode(path: str) -> pyfuse3.InodeT:
        return pyfuse3.InodeT(host.tree.resolve(f"/{path}"))

    def write(node: pyfuse3.InodeT, data: bytes) -> None:
        handle = answer(served.open(node, os.O_WRONLY, _CONTEXT)).fh
        answer(served.write(handle, 0, data))
        answer(served.release(handle))

    def read(_number: int) -> None:
        handle = answer(served.open(attribute, os.O_RDONLY, _CONTEXT)).fh
        answer(served.read(handle, 0, 4096))
        answer(served.release(handle))

    queue, attribute = inode(QUEUE), inode(f"{QUEUE}/chkstop")
    stores = [inode(f"{MDEV}/{name}") for name in ("assign_domain", "unassign_domain")]
    write(inode(f"{MDEV}/assign_adapter"), b"5")
    return {
        "open+read+release": read,
        "open+write+release, assign and unassign_domain": lambda number: write(stores[number & 1], b"3"),
        "lookup": lambda _number: answer(served.lookup(queue, b"chkstop", _CONTEXT)),
        "getattr": lambda _number: answer(served.getattr(queue, _CONTEXT)),
    }


def count(name: str, times: int) -> int:
    """Return the instructions of a process that does something so many times."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m", __spec__.name]
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    result = subprocess.run([*command, name, str(times)], env=env, capture_output=True, text=True, check=True)
    found = re.search(r"Collected : (\d+)", result.stderr)
    assert found, result.stderr
    return int(found[1])


def main() -> None:
    """Count, or do what is counted."""
    if len(sys.argv) > 1:
        run = operations()[sys.argv[1]]
        for number in range(int(sys.argv[2])):
            run(number)
        return
    print("| operation | instructions |\n|---|---|")
    for name in operations():
        count(name, 1)  # so that all modules are compiled
        print(f"| {name} | {(count(name, MANY) - count(name, FEW)) // (MANY - FEW):,} |", flush=True)


if __name__ == "__main__":
    main()
