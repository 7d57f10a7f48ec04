"""Instructions that apfs's own part of an operation takes, counted by callgrind: the same on any machine.

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
from apfs.scenario import loads
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

    def use(path: str, flags: int, do: Callable[[pyfuse3.FileHandleT], Coroutine[Any, Any, Any]]) -> None:
        node = pyfuse3.InodeT(host.tree.resolve(f"/{path}"))
        handle = answer(served.open(node, flags, _CONTEXT)).fh
        answer(do(handle))
        answer(served.release(handle))

    def store(number: int) -> None:
        name = "unassign_domain" if number % 2 else "assign_domain"
        use(f"{MDEV}/{name}", os.O_WRONLY, lambda handle: served.write(handle, 0, b"3"))

    use(f"{MDEV}/assign_adapter", os.O_WRONLY, lambda handle: served.write(handle, 0, b"5"))
    queue = pyfuse3.InodeT(host.tree.resolve(f"/{QUEUE}"))
    return {
        "open+read+release": lambda _number: use(
            f"{QUEUE}/chkstop", os.O_RDONLY, lambda handle: served.read(handle, 0, 4096)
        ),
        "open+write+release, assign and unassign_domain": store,
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
