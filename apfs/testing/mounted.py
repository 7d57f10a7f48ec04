"""Mounted hosts for tests: started, used and ended from a test program.

A host exists as long as its `with` block. If the program that created it dies in any way, the host and its mount end,
too.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apfs.mounts import forks, guests, migration, places, server, table
from apfs.testing.files import Files
from apfs.testing.processes import COMMAND_SECONDS, Closing, checked, end

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping, Sequence

Clock = Literal["real", "manual"]


class MountedFiles(Files):
    """A mounted host, or its guest. Refused requests raise `OSError`, as for any file."""

    def __init__(self, path: Path, selection: Sequence[str]) -> None:
        self.path = path
        """Where it is: `path / "sys/bus/ap"`."""
        self.selection = selection
        """Options of `apfs exec` that name it."""

    def guest(self, uuid: str) -> MountedGuest:
        """Return the running guest of a mediated device. `apfs.MountsError` if none runs."""
        return MountedGuest(self, uuid)

    # -- files -------------------------------------------------------------------------------------

    def _at(self, path: str) -> Path:
        return self.path / path.lstrip("/")

    def read(self, path: str) -> bytes:
        """Return the content of a file, read to its end."""
        return self._at(path).read_bytes()

    def write(self, path: str, data: str | bytes) -> int:
        """Write data in a single write and return the number of bytes accepted.

        Unbuffered: a buffer would retry a refused write when it is closed.
        """
        file = os.open(self._at(path), os.O_WRONLY)
        try:
            return os.write(file, data.encode() if isinstance(data, str) else data)
        except OSError as error:
            error.filename = path  # an error of write(2) has no file name
            raise
        finally:
            os.close(file)

    def ls(self, path: str) -> list[str]:
        """Return the names in a directory, in the order of the listing."""
        return os.listdir(self._at(path))  # noqa: PTH208 -- names are wanted

    def readlink(self, path: str) -> str:
        """Return the target of a link."""
        return str(self._at(path).readlink())

    def exists(self, path: str) -> bool:
        """Whether a path exists."""
        return self._at(path).exists()

    # -- commands ----------------------------------------------------------------------------------

    def exec(
        self,
        *command: str | os.PathLike[str],
        options: Sequence[str] = (),
        check: bool = False,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | None = COMMAND_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that sees this system at `/sys` and `/dev`, with `apfs exec --mount`, and return its output.

        `options` are those of `apfs exec`, such as `("--tmpfs", "/etc/mdevctl.d")`; `env` is added to the environment.
        With `check`, an exit status other than 0 raises `CalledProcessError`, which also shows standard error. Exit
        status 125 means that `apfs exec` itself failed; `stderr` has the reason. `TimeoutExpired` after `timeout`
        seconds.
        `apfs.MountsError` if the process that forks commands was killed meanwhile.
        """
        words = ["exec", "--die-with-parent", *self.selection, *options, "--", *command]
        result = forks.run(words, stdin=stdin or "", env={**os.environ, **(env or {})}, cwd=cwd, timeout=timeout)
        return checked(result, command, check=check)

    def sh(
        self,
        script: str,
        *arguments: str | os.PathLike[str],
        options: Sequence[str] = (),
        check: bool = False,
        timeout: float | None = COMMAND_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Run a bash script like `exec` runs commands; `arguments` are its `$1`, `$2` ..."""
        return self.exec("bash", "-c", script, "bash", *arguments, options=options, check=check, timeout=timeout)


class MountedHost(MountedFiles, Closing):
    """A host that is mounted on a new directory. Refused requests raise `OSError`, as for any file."""

    def __init__(
        self,
        scenario: str | os.PathLike[str] = "default",
        *,
        clock: Clock = "manual",
        allow_other: bool | None = None,
    ) -> None:
        """Mount a scenario: a name of the gallery, a file, or, if it contains a newline, the TOML text itself.

        With a `manual` clock, the AP bus scans only on request; with a `real` one, also every `config_time` seconds.
        `allow_other` gives other users access; None does so only for root.
        `apfs.MountsError` says what is missing for a mount, or what is wrong with the scenario.
        """
        self._place = places.Place("apfs-host-")
        place = self._place.mountpoint
        with self._place.serving() as lifeline, _as_argument(scenario) as argument:
            options = ["--scenario", argument, "--clock", clock]
            if allow_other is not None:
                options.append("--allow-other" if allow_other else "--no-allow-other")
            self._server = server.start_by(_start, str(place), options, lifeline)
        self._closed = False
        super().__init__(place, ("--mount", str(place)))

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._server.pid

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._server.poll() is None

    def close(self) -> None:
        """Unmount and remove the directory, even if files are open or the server was killed. Can be called twice."""
        if self._closed:
            return
        # Not by the lifeline alone: a process forked from this one may hold it too.
        # Returns when the mount helper, too, is gone, which clears away the mount of a server that was killed.
        end(self._server)
        self._closed = True
        self._place.release()
        self._place.remove()


class MountedGuest(MountedFiles):
    """The running guest of a mediated device of a mounted host. Paths are those on the guest."""

    def __init__(self, host: MountedFiles, uuid: str) -> None:
        super().__init__(guests.place(host.path, uuid), (*host.selection, "--guest", uuid))
        self.uuid = uuid


@dataclass(frozen=True, slots=True)
class Pair:
    """Two mounted hosts, between which guests migrate."""

    source: MountedHost
    target: MountedHost

    def _ends(self, uuid: str) -> tuple[migration.Source, migration.Target]:
        return migration.Source(self.source.path, uuid), migration.Target(self.target.path, uuid)

    def migrate(self, uuid: str) -> migration.Outcome:
        """Live-migrate the guest of a mediated device from source to target. The result has `ok`, and `error` if not.

        `apfs.mounts.migration.NotPossibleError` if a host lacks the device or the source its guest.
        """
        return migration.migrate(*self._ends(uuid))

    def check(self, uuid: str) -> migration.Check:
        """Say whether the target would accept the guest, and if not, why; nothing is changed."""
        return migration.check(*self._ends(uuid))


def _start(words: Sequence[str], descriptors: Sequence[int]) -> forks.Command:
    return forks.Command(words, talks=False, outlives=True, pass_fds=descriptors)


@contextlib.contextmanager
def _as_argument(scenario: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the word for a scenario on a command line."""
    if not isinstance(scenario, str):
        yield str(Path(scenario).absolute())
    elif "\n" not in scenario:
        yield scenario
    else:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".toml") as file:
            file.write(scenario)
            file.flush()
            try:
                yield file.name
            except table.MountsError as error:
                raise table.MountsError(str(error).replace(file.name, "scenario"), error.exit_status) from None
