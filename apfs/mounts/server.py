"""Starting servers, and the checks beforehand."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Generic, NoReturn, Protocol, TypeVar

from apfs.mounts.interrupts import interrupts
from apfs.mounts.table import MountsError, absolute, exists, is_apfs, is_dead, unmount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PYTHON = (sys.executable, "-P")
"""The interpreter for processes of our own: without modules of the current directory, in which others may write, or in
which a checkout named `apfs` may hide the package."""

READY = b"ready"
"""What a server writes to its --ready-fd when its mount can be used."""


def check_mountpoint(mountpoint: str) -> None:
    """Make sure that a file system can be mounted there; clear a dead apfs away. `MountsError` if not."""
    if is_apfs(mountpoint):
        if not is_dead(mountpoint):
            raise MountsError(f"{mountpoint} already has an apfs mounted: `apfs umount {quote(mountpoint)}` first")
        try:
            unmount(mountpoint)
        except MountsError:
            if is_apfs(mountpoint):  # else its mount helper was faster
                raise
    if not exists(mountpoint):
        raise MountsError(f"mount point {mountpoint} does not exist: create it with `mkdir -p {quote(mountpoint)}`")
    if not Path(mountpoint).is_dir():
        raise MountsError(f"mount point {mountpoint} is not a directory")
    if os.geteuid() and not _is_for_users(mountpoint):
        raise MountsError(
            f"mount point {mountpoint}: users other than root mount only on directories that they may write in, "
            "and where the sticky bit is set only on their own; `mkdir` creates one"
        )


def _is_for_users(mountpoint: str) -> bool:
    """Whether fusermount3 lets this user mount on a directory, as far as that is up to the directory."""
    try:
        found = Path(mountpoint).stat()
    except PermissionError:
        return False
    mine = found.st_uid == os.getuid()
    return (mine or not found.st_mode & stat.S_ISVTX) and os.access(mountpoint, os.W_OK | os.X_OK)


@contextlib.contextmanager
def claimed(mountpoint: str) -> Iterator[None]:
    """Have a mount point that `check_mountpoint` has approved for oneself while mounting, for a with statement.

    The claim is a lock (flock(2)) of the directory below the mount, which the kernel lets go when this process ends,
    however that happens. `MountsError` with exit status 2 if somebody else is mounting there or has done so meanwhile.
    """
    try:
        directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # its owner may mount there without being able to list it
        directory = -1
    except OSError as error:
        raise MountsError(f"mount point {mountpoint}: {error.strerror}", 2) from None
    try:
        if directory >= 0:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_apfs(mountpoint):
            raise MountsError(f"{mountpoint} has just been mounted by another apfs", 2)
        yield
    except BlockingIOError:
        raise MountsError(
            f"{mountpoint} is being mounted by another apfs right now (its directory is locked)", 2
        ) from None
    finally:
        if directory >= 0:
            os.close(directory)


class Server(Protocol):
    """The process of a server; `subprocess.Popen` is one."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, as `communicate` has found it."""

    def communicate(self) -> tuple[bytes, ...]:
        """Wait for its end, and return what it wrote; standard error comes last."""


S = TypeVar("S", bound=Server)


def start_interpreter(words: Sequence[str], descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a command of apfs in a new interpreter and a session of its own, with some descriptors."""
    return subprocess.Popen(
        [*PYTHON, "-m", "apfs", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        start_new_session=True,
    )


def start_server(mountpoint: str, options: list[str], lifeline: int | None = None) -> subprocess.Popen[bytes]:
    """Start `apfs mount --foreground` in a session of its own and return it when the mount answers.

    For programs that live on, which may have threads: it is a new interpreter. `lifeline` is the reading end of a pipe:
    when its other end is closed, the server ends. `MountsError` with the server's message and exit status if it failed.
    """
    return start_by(start_interpreter, mountpoint, options, lifeline)


def start_by(
    start: Callable[[Sequence[str], Sequence[int]], S], mountpoint: str, options: list[str], lifeline: int | None
) -> S:
    """Start a server as `start_server` does, with a function that starts a command of apfs with some descriptors."""
    starting = begin_by(start, mountpoint, options, lifeline)
    starting.wait_until_it_answers()
    return starting.server


def begin_by(
    start: Callable[[Sequence[str], Sequence[int]], S], mountpoint: str, options: list[str], lifeline: int | None
) -> Starting[S]:
    """Start a server as `start_by` does, without waiting."""
    place = absolute(mountpoint)
    ready, writer = os.pipe()
    inherited = [writer, *([] if lifeline is None else [lifeline])]
    words = ["mount", "--foreground", "--ready-fd", str(writer)]
    words += [] if lifeline is None else ["--lifeline-fd", str(lifeline)]
    try:
        return Starting(start([*words, *options, "--", mountpoint], inherited), place, ready)
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(writer)


class Starting(Generic[S]):
    """A server that may not answer yet."""

    def __init__(self, server: S, mountpoint: str, ready: int) -> None:
        self.server = server
        self.mountpoint = mountpoint
        self._ready = ready
        self._ended = False

    def wait_until_it_answers(self) -> None:
        """Return when the mount can be used; once. `MountsError` with the server's message and status if it gave up."""
        _wait_until_it_answers(self.mountpoint, self._ready, self._end)

    def _end(self) -> tuple[bytes, int]:
        self._ended = True
        return self.server.communicate()[-1], self.server.returncode or 0

    def end(self) -> None:
        """Wait for the end of the server, which has been told to end."""
        if not self._ended:
            self._end()


class Forked:
    """A server in a fork of this process."""

    def __init__(self, pid: int, errors: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._errors = errors

    def communicate(self) -> tuple[bytes, ...]:
        """Wait for its end, and return what it wrote to standard error."""
        with open(self._errors, "rb") as output:  # noqa: PTH123 -- a descriptor
            said = output.read()  # until the mount helper has ended, too
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return (said,)

    def terminate(self) -> None:
        """Send SIGTERM."""
        os.kill(self.pid, signal.SIGTERM)


def fork(run: Callable[[], None], *keep: int) -> Forked:
    """Run something in a fork of this process, which has no threads, and in a session of its own.

    It has no descriptors but those to keep, and standard streams. `MountsError` without a /dev/null.
    """
    null = open_null()
    errors, writer = os.pipe()
    gc.freeze()  # garbage collection, which happens at exit at the latest, would copy pages: 13 ms
    pid = os.fork()
    if pid == 0:
        end_with(lambda: _run_in_session(run, (null, null, writer), keep))
    os.close(null)
    os.close(writer)
    return Forked(pid, errors)


def _run_in_session(run: Callable[[], None], streams: Sequence[int], keep: Sequence[int]) -> None:
    begin_session(streams, *keep)
    run()


def fork_server(mountpoint: str, serve: Callable[[int], None]) -> None:
    """Fork a child that will `serve` in a session of its own, as a daemon, and return when the mount answers.

    For commands, which have no threads and are done then. `serve` gets the descriptor to write READY to, and keeps no
    other but the standard streams; the child ends with it. `MountsError` with the child's last words and exit
    status if it gave up. Then, and if Ctrl-C comes, nothing of it is left.
    """
    mountpoint = absolute(mountpoint)
    ready, writer = os.pipe()
    forked = fork(lambda: serve(writer), writer)
    os.close(writer)
    starting = Starting(forked, mountpoint, ready)
    try:
        starting.wait_until_it_answers()
    except BaseException as error:
        if not isinstance(error, MountsError):
            forked.terminate()
        starting.end()
        _clear_away(mountpoint)
        raise


def begin_session(streams: Sequence[int], *keep: int) -> None:
    """Put a child that runs on without exec into a session of its own, with these streams and descriptors alone."""
    os.setsid()
    keep_only(streams, *keep)


def keep_only(streams: Sequence[int], *keep: int) -> None:
    """Leave a child that runs on without exec nothing of its caller's but these streams and descriptors."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it takes care of signals itself
    for stream, target in enumerate(streams):
        os.dup2(target, stream)
    close_others(*keep)


def open_null() -> int:
    """Return a new descriptor of /dev/null, for a child's standard streams.

    `MountsError`, with all that is missing for a mount, if it is not there or may not be opened.
    """
    try:
        return os.open(os.devnull, os.O_RDWR)
    except (FileNotFoundError, PermissionError):
        from apfs.mounts import environment  # noqa: PLC0415 -- takes as long as a tenth of all other imports

        environment.check_fuse()
        raise


def end_with(run: Callable[[], None]) -> NoReturn:
    """Run the rest of this process, and end it as the interpreter would, but without what belongs to its caller.

    The process that forked, a command or a program that calls one, has `finally` clauses and exit handlers, which are
    the parent's: they may remove what the server uses, or do twice what is to be done once.
    """
    status = 1
    try:
        run()
        status = 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
        else:
            print(end.code, file=sys.stderr)  # noqa: T201 -- as the interpreter does
    except BaseException:  # noqa: BLE001 -- it ends here
        sys.__excepthook__(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


def close_others(*keep: int) -> None:
    """Close, in a child that runs on without exec, all descriptors but the standard streams and those to keep."""
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2 and descriptor not in keep:  # noqa: PLR2004 -- standard streams
            with contextlib.suppress(OSError):  # that of the directory itself is closed already
                os.close(descriptor)


def _wait_until_it_answers(mountpoint: str, ready: int, end: Callable[[], tuple[bytes, int]]) -> None:
    """Wait for READY; if a server ended without it, `end` returns what it said and its exit status."""
    with os.fdopen(ready, "rb") as pipe, interrupts.heeded():
        said = pipe.read()
    if said != READY or not _answers(mountpoint):
        output, status = end()
        lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
        # The last line is the server's own; what the mount helper said comes before it.
        said_last = "; ".join(line.removeprefix("apfs: ") for line in lines[-2:])
        raise MountsError(said_last or f"the server {_end_of(status)}", status if status > 0 else 1)


def _end_of(status: int) -> str:
    """Say how a process has ended that has not said anything itself."""
    if status == -signal.SIGKILL:
        return "was killed by signal 9, as Linux does when memory runs out"
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _answers(mountpoint: str) -> bool:
    """Whether a server that was ready still is."""
    try:
        Path(mountpoint, "sys").stat()
    except OSError:
        return False
    return True


def _clear_away(mountpoint: str) -> None:
    """Unmount what a server that was killed while it mounted has left."""
    if is_apfs(mountpoint) and is_dead(mountpoint):
        with contextlib.suppress(MountsError):
            unmount(mountpoint)
