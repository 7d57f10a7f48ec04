"""`apfs agent`: run a command in which commands of apfs start fast."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import click

from apfs.cli import completion
from apfs.cli.streams import fail

if TYPE_CHECKING:
    import socket


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument(
    "words", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=completion.commands
)
def command(words: tuple[str, ...]) -> None:
    """Run COMMAND, in which `apfs mount`, `apfs exec` and `apfs umount` are faster.

    This is for test suites in a shell. A process that has imported everything runs as long as COMMAND and forks those
    commands, which do the same as without it: `apfs mount` leaves hosts mounted when COMMAND ends.

    They find that process by the environment variable APFS_AGENT. Where a fork would differ from a new process they do
    without it: after a change of the user, the session, the limits (ulimit), the cgroup, the locale, the installation
    of apfs or the namespaces, so also inside `apfs exec` and in containers.

    \b
    EXAMPLE
        apfs agent -- bats tests
        apfs agent -- sh -c 'apfs mount /tmp/a && apfs mount /tmp/b'

    \b
    EXIT STATUS
        that of COMMAND, or
        2  wrong usage or environment    126  COMMAND cannot be run    127  COMMAND was not found
    """
    from apfs.cli.start import AGENT
    from apfs.mounts import agent, table

    try:
        table.check_proc()
        listener, told = agent.new_socket()
        with listener:
            _start(listener)
    except (OSError, table.MountsError) as error:
        fail(f"the agent could not be started: {error}", 2)
    os.environ[AGENT] = told
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and COMMAND would
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(words[0], words)  # noqa: S606 -- no shell
    except OSError as error:
        from apfs.sandbox.run import NOT_EXECUTABLE, NOT_FOUND

        if isinstance(error, FileNotFoundError):
            fail(f"{words[0]}: command not found", NOT_FOUND)
        fail(f"{words[0]}: {error.strerror}", NOT_EXECUTABLE)


def _start(listener: socket.socket) -> None:
    """Start an agent that ends with this process, and return when it listens.

    It is no child: COMMAND takes the place of this process, and may wait for all the children that it finds.
    """
    from apfs.mounts.server import end_with, open_null

    null = open_null()
    owner = os.pidfd_open(os.getpid())
    listening, writer = os.pipe()
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            end_with(partial(_serve, listener, owner, writer, null))
        os._exit(0)
    os.waitpid(between, 0)
    for descriptor in (null, owner, writer):
        os.close(descriptor)
    with open(listening, "rb") as pipe:  # noqa: PTH123 -- a descriptor
        pipe.read()


def _serve(listener: socket.socket, owner: int, listening: int, null: int) -> None:
    from apfs.mounts.server import keep_only

    os.setpgid(0, 0)  # so that signals for COMMAND do not reach it
    keep_only((null, null, null), listener.fileno(), owner, listening)
    listener.listen()  # here, since the kernel tells clients who did
    os.close(listening)
    from apfs.cli import forkserver

    forkserver.prepare()
    forkserver.serve_session(listener, owner)
