"""Mounted hosts for tests: started, used and ended from a test program.

A host lives exactly as long as its `with` block. If the program that made it dies instead, however that happens, the
host ends too and takes its mount with it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apfs.mounts import guests, migration, places, server, table
from apfs.testing import forks
from apfs.testing.files import Files
from apfs.testing.processes import COMMAND_SECONDS, Closing, checked, end

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping, Sequence

Clock = Literal["real", "manual"]


class MountedFiles(Files):
    """A mounted host or a guest of one. What it refuses is an `OSError`, as with any file."""

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
        """Write a text in one write and return the bytes taken.

        Without buffers, which would try again to write what was refused when they are closed.
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
        """Return the names in a directory, in its order."""
        return os.listdir(self._at(path))  # noqa: PTH208 -- names are wanted

    def readlink(self, path: str) -> str:
        """Return the text of a link."""
        return str(self._at(path).readlink())

    def exists(self, path: str) -> bool:
        """Whether there is something at a path."""
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
        """Run a command that sees this system at `/sys` and `/dev`, by `apfs exec --mount`, and return what it said.

        `options` are those of `apfs exec`, such as `("--tmpfs", "/etc/mdevctl.d")`; `env` is added to the environment.
        With `check` an exit status other than 0 is a `CalledProcessError`, which shows standard error too. 125 means
        that `apfs exec` itself failed, for the reason in `stderr`. `TimeoutExpired` after `timeout` seconds.
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
        """Run a bash script as `exec` runs commands; `arguments` are its `$1`, `$2` ..."""
        return self.exec("bash", "-c", script, "bash", *arguments, options=options, check=check, timeout=timeout)


class MountedHost(MountedFiles, Closing):
    """A host that is mounted on a new directory. What it refuses is an `OSError`, as with any file."""

    def __init__(
        self,
        scenario: str | os.PathLike[str] = "default",
        *,
        clock: Clock = "manual",
        allow_other: bool | None = None,
    ) -> None:
        """Mount a scenario: a name of the gallery, a file, or, if there is a newline in it, the TOML text itself.

        With a `manual` clock the AP bus scans when it is told to; with a `real` one also every `config_time` seconds.
        `allow_other` lets other users in; None does so for root only.
        `apfs.MountsError` says what the machine lacks for a mount, or what is wrong with the scenario.
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
        """Unmount and remove the directory, also if files are open or the server was killed. Twice is no error."""
        if self._closed:
            return
        # Not by the lifeline alone: a process forked from this one may hold it too.
        # Returns when the mount helper, too, is gone, which clears away the mount of a server that was killed.
        end(self._server)
        self._closed = True
        self._place.release()
        self._place.remove()


class MountedGuest(MountedFiles):
    """The guest of a mediated device of a mounted host, as long as it runs. Paths are those on the guest."""

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
        """Live-migrate the guest of a mediated device from source to target. `ok` tells whether, `error` why not.

        `apfs.mounts.migration.NotPossibleError` if a host lacks the device or the source its guest.
        """
        return migration.migrate(*self._ends(uuid))

    def check(self, uuid: str) -> migration.Check:
        """Say whether the target would accept the guest, and if not, why; nothing is changed."""
        return migration.check(*self._ends(uuid))


def _start(words: Sequence[str], descriptors: Sequence[int]) -> forks.Command:
    return forks.Command(words, talks=False, pass_fds=descriptors)


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
