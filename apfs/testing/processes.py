"""Programs that a test starts: commands with what they said, and servers that end with their `with` block."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any, Self

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
    if check and result.returncode:
        error = subprocess.CalledProcessError(result.returncode, named, result.stdout, result.stderr)
        error.add_note(result.stderr.rstrip())
        raise error
    return result


def end(server: subprocess.Popen[Any]) -> None:
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
