"""Places in which a test can let things be missing, or be there, without touching the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

# Far beyond anything that works, installations included; only keeps a hanging command from hanging the run.
TIMEOUT = 600


class Room:
    """A private mount namespace, and if wanted a user namespace, in which things can be missing."""

    def __init__(self, *, users: bool) -> None:
        unshare = ["unshare", "--mount", *(["--user"] if users else [])]
        self._holder = subprocess.Popen(
            [*unshare, "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout
        self._holder.stdout.readline()
        self._enter = ["nsenter", f"--target={self._holder.pid}", "--mount"]
        if users:
            # All users are mapped to themselves, but the limits of the namespace are its own.
            for kind in ("uid", "gid"):
                Path(f"/proc/{self._holder.pid}/{kind}_map").write_text("0 0 100000")
            self._enter += ["--user", "--setuid=0", "--setgid=0"]

    def enter(self, *command: str) -> tuple[str, ...]:
        """Return the command that runs a command in the room, in the directory that this process is in."""
        return (*self._enter, f"--wdns={Path.cwd()}", "--", *command)

    def run(self, *command: str, status: int | None = 0) -> str:
        """Run a command in the room and return what it prints."""
        result = subprocess.run(self.enter(*command), check=False, capture_output=True, text=True, timeout=TIMEOUT)
        assert status is None or result.returncode == status, (command, result)
        return result.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let the namespaces go."""
        self._holder.communicate(timeout=TIMEOUT)
