"""Sessions that have an agent, as tests of `apfs agent` and of what it runs need them."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import TIMEOUT, server_of
from tests.testing.conftest import wait_readable

APFS = [sys.executable, "-m", "apfs"]
_NUMBERS = itertools.count()


class Session:
    """A command that runs with an agent, as a shell would: it waits for its standard input to end.

    A `prelude` of commands of a shell comes before the agent.
    """

    def __init__(self, prelude: str = "") -> None:
        script = 'echo "$APFS_AGENT"; exec cat'
        words = [*APFS, "agent", "--", "sh", "-c", script, f"sh-{next(_NUMBERS)}"]
        started = ["sh", "-c", f'{prelude} exec "$@"', "sh", *words]
        self.process = subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.told = self.process.stdout.readline().strip()
        # The agent has kept the command line, which the command has not; its forks are younger.
        kept = b"".join(os.fsencode(word) + b"\0" for word in words)
        found = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if command_line(int(entry.name)) == kept]
        self.pid = min(found, key=lambda pid: int(stat_of(pid)[19]))
        self.agent = os.pidfd_open(self.pid)

    def run(self, *command: str | Path, **changes: object) -> subprocess.CompletedProcess[str]:
        """Run a command in the session."""
        env = {**os.environ, "APFS_AGENT": self.told}
        return run(*command, env=env, **changes)

    def mounted(self, mountpoint: Path, *options: str) -> int:
        """Mount a host in the session, and return its server."""
        mountpoint.mkdir(exist_ok=True)
        said = self.run(*APFS, "mount", *options, mountpoint)
        assert (said.stdout, said.stderr, said.returncode) == ("", "", 0)
        return server_of(mountpoint)

    def end(self) -> None:
        """End the command, and wait until the agent has ended, too."""
        self.process.communicate(timeout=TIMEOUT)
        wait_readable(self.agent)
        os.close(self.agent)


def run(*command: str | Path, **changes: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, **changes)  # type: ignore[call-overload,no-any-return]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def was_forked(server: int) -> bool:
    """Whether an agent has forked a server."""
    return b"\0agent\0" in command_line(server)
