"""One of many: makes requests to a mount at random and notes when each was made, when it returned, and what came of it.

    python client.py ROOT NUMBER SEED STEPS LOG

It begins when its standard input ends. LOG gets a JSON object per request: `kind`, `path` as on the host, `data`,
`call` and `return` by CLOCK_MONOTONIC, which is the same for all processes, and what came of it: `errno`, or `got`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
from random import Random
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

UUIDS = tuple(f"{digit * 8}-aaaa-4aaa-8aaa-{digit * 12}" for digit in "1234")
MATRIX = "/sys/devices/vfio_ap/matrix"
CREATE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create"
MASKS = ("-5", "+5", "-6", "+6", "-7", "+7", "-5-6", "+5+6", "-0x47", "nonsense")
VERBS = (
    *("scan", "tick 30", "plug 8 CEX8C", "unplug 8", "unplug 6", "plug 6 CEX8C", "add-domain 9", "remove-domain 9"),
    *("configure 5 off", "configure 5 on", "fail-reset 05.0004", "nonsense"),
)
ATTRIBUTES = (
    *("/sys/bus/ap/apmask", "/sys/bus/ap/aqmask", "/sys/bus/ap/bindings", "/sys/devices/ap/card06/06.0004/config"),
    *(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/available_instances", "/sys/devices/ap/card08/config"),
)
DIRECTORIES = (
    MATRIX,
    "/sys/bus/mdev/devices",
    "/sys/devices/ap",
    "/sys/bus/ap/drivers/vfio_ap",
    "/dev/vfio",
    "/guests",
)
LINKS = tuple(f"/sys/devices/ap/card{name[:2]}/{name}/driver" for name in ("05.0004", "06.0047", "08.0004"))


class Client:
    """A process that works on a host."""

    def __init__(self, root: str, number: int, random: Random, log: IO[str]) -> None:
        self._root = root
        self._number = number
        self._random = random
        self._log = log

    def spell(self, text: str) -> str:
        """Return a text that means the same, as only this process writes it: numbers have zeros in front."""
        if text in UUIDS:  # letters are large or small
            bits = iter(f"{self._number:010b}")
            return "".join(letter.upper() if letter == "a" and next(bits) == "1" else letter for letter in text)
        return re.sub(r"\b(?:0x)?([0-9])", rf"0x{'0' * self._number}\1", text)

    def request(self, kind: str, path: str, act: Callable[[], object], data: str = "") -> object:
        """Make a request, and note it; return what came of it, None if that is an error."""
        call = time.monotonic_ns()
        got, name = None, ""
        try:
            got = act()
        except OSError as error:
            name = errno.errorcode[error.errno or 0]
        end = time.monotonic_ns()
        note: dict[str, object] = {"kind": kind, "path": path, "data": data, "call": call, "return": end}
        note |= {"errno": name} if name else {}
        if got is not None and not isinstance(got, int):
            note["got"] = got
        self._log.write(f"{json.dumps(note)}\n")
        return None if name else got

    def open(self, path: str, flags: int, kind: str = "open") -> int | None:
        fd = self.request(kind, path, lambda: os.open(self._root + path, flags))
        return fd if isinstance(fd, int) else None

    def write(self, path: str, text: str) -> bool:
        """Write a text in one write; return whether it was taken."""
        fd = self.open(path, os.O_WRONLY)
        if fd is None:
            return False
        taken = self.request("write", path, lambda: os.write(fd, text.encode("latin-1")), text)
        os.close(fd)
        return taken is not None

    def read(self, path: str) -> None:
        fd = self.open(path, os.O_RDONLY)
        if fd is not None:
            self.request("read", path, lambda: os.read(fd, 1 << 17).decode("latin-1"))
            os.close(fd)

    def step(self) -> None:
        """Make one or a few requests."""
        uuid = self._random.choice(UUIDS)
        self._random.choice((self.change, self.change, self.assign, self.assign, self.look, self.look, self.look))(uuid)

    def change(self, uuid: str) -> None:
        """Change something for everybody."""
        choose = self._random.choice
        match self._random.randrange(6):
            case 0:
                self.write(choose(("/sys/bus/ap/apmask", "/sys/bus/ap/aqmask")), self.spell(choose(MASKS)))
            case 1:
                self.write(CREATE, self.spell(uuid))
            case 2:
                self.write(f"{MATRIX}/{uuid}/remove", self.spell("1"))
            case 3:
                self.write("/ctl/console", choose(VERBS).replace(" ", " " * (1 + self._number)))
            case 4:
                self.write(f"/dev/vfio-ap/{uuid}/guest", self.spell(choose("0111")))
            case _:
                self.migrate(f"/dev/vfio-ap/{uuid}")

    def assign(self, uuid: str) -> None:
        """Give a mediated device something, or take it away."""
        choose = self._random.choice
        axis, number = choose(
            (("adapter", "5"), ("adapter", "6"), ("domain", "4"), ("domain", "0x47"), ("domain", "9"))
        )
        self.write(f"{MATRIX}/{uuid}/{choose(('assign', 'assign', 'unassign'))}_{axis}", self.spell(number))

    def look(self, uuid: str) -> None:
        """Look at something."""
        choose = self._random.choice
        match self._random.randrange(5):
            case 0:
                self.read(choose(ATTRIBUTES))
            case 1:
                self.read(f"{MATRIX}/{uuid}/{choose(('matrix', 'guest_matrix', 'control_domains'))}")
            case 2:
                path = choose(DIRECTORIES)
                self.request("list", path, lambda: sorted(os.listdir(self._root + path)))  # noqa: PTH208 -- names
            case 3:
                path = choose(LINKS)
                self.request("link", path, lambda: os.readlink(self._root + path))  # noqa: PTH115 -- text
            case _:
                self.read("/ctl/status")

    def migrate(self, place: str) -> None:
        """Save the state of a guest and, perhaps after others have changed it, load it into the same one."""
        stream = ""
        if self.write(f"{place}/migration_state", self.spell("3")):  # STOP_COPY
            stream = self.transfer(f"{place}/data_stream", os.O_RDONLY, "")
        if self.write(f"{place}/migration_state", self.spell("4")) and stream:  # RESUMING
            self.transfer(f"{place}/data_stream", os.O_WRONLY, stream)
        self.write(f"{place}/migration_state", self.spell("2"))  # RUNNING

    def transfer(self, path: str, flags: int, stream: str) -> str:
        """Read a stream (in hex) in pieces, or write it in one."""
        fd = self.open(path, flags, "take")
        if fd is None:
            return ""
        if stream:
            self.request("send", path, lambda: os.write(fd, bytes.fromhex(stream)), stream)
        else:
            while piece := self.request("receive", path, lambda: os.read(fd, 20).hex()):
                stream += str(piece)
        self.request("close", path, lambda: os.close(fd))
        return stream


def main(root: str, number: str, seed: str, steps: str, log: str) -> None:
    sys.stdin.read()
    with open(log, "w") as file:  # noqa: PTH123 -- without pathlib it starts faster
        client = Client(root, int(number), Random(int(seed)), file)  # noqa: S311 -- no secret
        for _ in range(int(steps)):
            client.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
