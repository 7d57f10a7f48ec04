"""Becoming QEMU: its arguments, preceded by the plugin if needed.

This implements `apfs qemu` and the program that libvirt uses as <emulator>. It runs for each probe by libvirt, so it
imports little.
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

from apfs.mounts.interrupts import interrupts
from apfs.vmm import build

NAME = "qemu-system-s390x"
MACHINE = "s390-ccw-virtio"
_PLUGIN_SYMBOL = b"qemu_plugin_register_vcpu_init_cb"
_ASKING = frozenset(("-h", "-help", "-version"))


class EmulatorError(Exception):
    """QEMU cannot be run as wanted; the message says why, and what to do."""


def find() -> str:
    """Return the path of QEMU: that of APFS_QEMU, or the first in PATH that is not this program by another name."""
    given = os.environ.get("APFS_QEMU")
    if given:
        return shutil.which(given) or given
    this = os.path.realpath(sys.argv[0])
    for directory in os.get_exec_path():
        found = shutil.which(NAME, path=directory)
        if found is not None and os.path.realpath(found) != this:
            return found
    raise EmulatorError(f"no {NAME}: apt install qemu-system-misc (Debian 12) or qemu-system-s390x (later)")


def machine_type(arguments: list[str]) -> str | None:
    """Return the type of the machine that the arguments ask for; None: QEMU's default."""
    machine = None
    for option, value in itertools.pairwise(arguments):
        if option in ("-M", "-machine", "--M", "--machine"):
            for position, part in enumerate(value.split(",")):
                key, equals, text = part.partition("=")
                if key == "type" and equals:
                    machine = text
                elif position == 0 and not equals:
                    machine = key
    return machine


def needs_plugin(qemu: str, arguments: list[str]) -> bool:
    """Whether QEMU will make a machine that can have an AP bus."""
    if any(argument.replace("--", "-", 1) in _ASKING for argument in arguments):
        return False
    machine = machine_type(arguments)
    if machine is None:
        return Path(qemu).name.endswith("s390x")
    return machine == MACHINE or machine.startswith(f"{MACHINE}-")


def check_plugins(qemu: str) -> None:
    """Raise EmulatorError if a QEMU was built without plugins. Scripts that start one are not examined."""
    try:
        with Path(qemu).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:4] != b"\x7fELF" or content.find(_PLUGIN_SYMBOL) >= 0:
                return
    except (OSError, ValueError):  # unreadable or empty: running it will say more
        return
    raise EmulatorError(
        f"{qemu} was built without plugins (--enable-plugins), which apfs needs for vfio-ap; Debian's QEMU has them"
    )


def command(qemu: str, arguments: list[str]) -> list[str]:
    """Return the command that runs QEMU, with the plugin where it is needed. Raises EmulatorError, PluginError."""
    if not needs_plugin(qemu, arguments):
        return [qemu, *arguments]
    check_plugins(qemu)
    file = str(build.plugin()).replace(",", ",,")
    return [qemu, "-plugin", f"file={file}", *arguments]


def become(qemu: str, arguments: list[str]) -> NoReturn:
    """Replace this process by QEMU. Raises EmulatorError, PluginError."""
    program = command(qemu, arguments)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and QEMU would inherit that
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as QEMU will have it anyway: none is noted and forgotten
    interrupts.check()
    try:
        os.execvp(qemu, program)  # noqa: S606 -- no shell, on purpose
    except OSError as error:
        raise EmulatorError(f"{qemu}: {error.strerror}") from error


def main() -> NoReturn:
    """Be QEMU for s390x, with this program's arguments: what libvirt runs."""
    try:
        become(find(), sys.argv[1:])
    except (EmulatorError, build.PluginError) as error:
        print(f"apfs: {error}", file=sys.stderr)  # noqa: T201 -- a command
        raise SystemExit(2) from None
