"""Stories: what is done to the files of one host, step by step, and what must be true after each step.

* No exception but `KernelError` leaves the host.
* A refusal leaves `ctl/status` as it is, byte for byte, is the last record of the journal, and has an errno that the
  kernel's function behind the file can give.
* At the end every file can be read or says why not, and every link leads somewhere.
"""

from __future__ import annotations

import json
import stat
from functools import partial
from typing import TYPE_CHECKING

from apfs.errors import KernelError
from apfs.host import Host
from apfs.journal.records import Close, Refusal
from apfs.scenario.reader import loads
from apfs.sysfs.entries import BOTH
from apfs.testing.files import Shell
from tests.fuzz.errors import errors_of
from tests.fuzz.hosts import HOSTS
from tests.fuzz.inputs import kind_of, text_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from apfs.journal.log import Journal
    from apfs.journal.records import Record
    from apfs.sysfs.tree import OpenFile
    from apfs.system import System

CONSOLE = "/ctl/console"
STEPS = 40
_HELD = 4
"""How many files are open at a time."""
_LOOK = 10
"""After how many steps somebody looks what is there."""


class Story:
    """One host, and what has been done to it."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.host = Host(loads(scenario))
        self.shell = Shell(self.host)
        self.steps: list[tuple[str, bytes]] = []
        self.answers: list[str] = []
        self._status = self.shell.read("/ctl/status")
        self._faulty = False
        self._held: list[OpenFile] = []
        self._files: list[str] = []

    def _choose(self, random: Random) -> str | None:
        """Return a file that can be written to, None if the one that was chosen has gone meanwhile."""
        if not len(self.steps) % _LOOK:
            self._files = [path for path, found in self.shell.find() if stat.S_ISREG(found.mode) and found.mode & 0o222]
        path = random.choice(self._files)
        return path if self.shell.exists(path) else None

    def go_on(self, random: Random) -> None:
        """Take a step of some kind."""
        chosen = self._choose(random)
        kind = random.randrange(10)
        if kind == 0:
            self._hold(chosen, random)
        elif kind <= 2 or chosen is None:
            self.write(CONSOLE, text_for(CONSOLE, random))
        else:
            self.write(chosen, text_for(chosen, random))

    def write(self, path: str, data: bytes) -> None:
        """Write to a file, and look at the answer."""
        self.steps.append((path, data))
        kind, journal = kind_of(path), self._journal(path)
        before = journal.last
        refusal = self._try(lambda: self.shell.write(path, data))
        self.answers.append(refusal.name if refusal else "")
        if refusal:
            records = [record for _, record in journal.since(before) if not isinstance(record, Close)]
            self._refused(kind, refusal, records[-1] if records else None)
        else:
            self._faulty |= path.endswith("/console") and data.startswith(b"fault")
            self._status = self.shell.read("/ctl/status")

    def _journal(self, path: str) -> Journal:
        """Return the journal of the host or guest that has a path."""
        system: System = self.host
        while path.startswith("/guests/"):
            _, _, uuid, rest = path.split("/", 3)
            system, path = system.guest(uuid), f"/{rest}"
        return system.journal

    def _refused(self, kind: str, error: KernelError, record: Record | None) -> None:
        status, old = self.shell.read("/ctl/status"), self._status
        self._status = status
        assert isinstance(record, Refusal), (kind, record)
        assert record.errno == error.name, (kind, record)
        if self._faulty:
            return  # each access that meets an injected fault is one fewer to come, and may have any errno
        assert error.name in errors_of(kind), f"{kind}: {error}"
        if kind == "/dev/vfio-ap/*/reset" and error.name in ("EIO", "EBUSY"):
            return  # all queues were reset, and one failed
        assert status == old, f"refused, but not without effect: {kind}: {error}"

    def _hold(self, path: str | None, random: Random) -> None:
        """Open a file for later, or do something to one that was opened before."""
        if path and len(self._held) < _HELD and random.random() < 0.5:
            self._try(lambda: self._held.append(self.host.tree.open(self.host.tree.resolve(path), BOTH)))
        elif self._held:
            file = random.choice(self._held)
            what = random.randrange(4)
            if what == 0:
                self._held.remove(file)
                self._try(file.close)
            elif what == 1:
                self._try(lambda: file.write(random.randbytes(random.randrange(60))))
            elif what == 2:
                self._try(lambda: file.read(random.choice((0, 1, 5, 4096, 2**40)), random.randrange(200)))
            else:
                self._try(file.poll)
        self._status = self.shell.read("/ctl/status")

    @staticmethod
    def _try(call: Callable[[], object]) -> KernelError | None:
        """Return what a call is refused with, which says why; nothing else may be raised."""
        try:
            call()
        except KernelError as error:
            refusal = error
        else:
            return None
        assert refusal.why
        return refusal

    def end(self) -> None:
        """Close what is open, and look at everything that is there."""
        for file in self._held:
            file.close()
        for path, found in list(self.shell.find()):
            if stat.S_ISLNK(found.mode):
                self._try(partial(self.shell.exists, path))
            elif stat.S_ISREG(found.mode) and found.mode & 0o444:
                self._try(partial(self.shell.read, path))

    def saved(self) -> str:
        """Return the story as a file of the corpus."""
        steps = [[path, data.decode("latin-1")] for path, data in self.steps]
        return json.dumps({"scenario": self.scenario, "steps": steps}, indent=1) + "\n"


def replay(file: Path) -> Story:
    """Go through a story of the corpus."""
    saved = json.loads(file.read_text())
    story = Story(saved["scenario"])
    for path, text in saved["steps"]:
        story.write(path, text.encode("latin-1"))
    story.end()
    return story


def some_story(random: Random) -> Story:
    """Go through a story of its own on some host."""
    story = Story(random.choice(HOSTS))
    try:
        for _ in range(STEPS):
            story.go_on(random)
        story.end()
    except BaseException as error:
        error.add_note(story.saved())
        raise
    return story


def some_steps(random: Random) -> int:
    """Go through a story; return how many steps it had."""
    return len(some_story(random).steps)
