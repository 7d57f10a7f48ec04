"""Programs that a test starts: commands with their output, and servers that end with their `with` block."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    Words = Sequence[str | os.PathLike[str]]

COMMAND_SECONDS = 60
"""How long a command may take unless `timeout` says otherwise."""
# What was told to end needs a few seconds at most; this only keeps a defect from hanging a test run.
_PATIENCE_SECONDS = 30


def run(
    words: Words,
    named: Words,
    *,
    check: bool,
    stdin: str,
    env: Mapping[str, str],
    timeout: float | None,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said.

    With `check` a status other than 0 is a `CalledProcessError`, which has the command as it is `named` and tells
    standard error too. `TimeoutExpired` after `timeout` seconds.
    """
    result = subprocess.run(
        words, check=False, input=stdin, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout
    )
    return checked(result, named, check=check)


def checked(result: subprocess.CompletedProcess[str], named: Words, *, check: bool) -> subprocess.CompletedProcess[str]:
    """Return the result of a command, with its own name. With `check` a status other than 0 raises, as with `run`."""
    result.args = named
    if check and result.returncode:
        error = subprocess.CalledProcessError(result.returncode, named, result.stdout, result.stderr)
        error.add_note(result.stderr.rstrip())
        raise error
    return result


class Ending(Protocol):
    """A process that can be ended; `subprocess.Popen` is one."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def communicate(self, said: Any = ..., timeout: float | None = None) -> object:  # noqa: ANN401 -- text or bytes
        """Wait for its end. `TimeoutExpired` after that many seconds."""


def end(server: Ending) -> None:
    """Tell a server to end and wait for it; kill it if it does not. Nothing if it has ended."""
    server.terminate()
    try:
        server.communicate(timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.communicate()


class Closing:
    """What is closed at the end of its `with` block."""

    def close(self) -> None:
        """End it, and leave nothing behind."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
