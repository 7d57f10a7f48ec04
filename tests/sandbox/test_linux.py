"""System calls by way of the C library: what a refusal looks like, and that they do what they say."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from apfs.sandbox import linux
from tests.conftest import TIMEOUT


def test_refusals_have_the_number_and_the_name_of_the_call() -> None:
    with pytest.raises(OSError, match="setns: Bad file descriptor") as refused:
        linux.enter(-1, linux.CLONE_NEWNET)
    assert refused.value.errno == errno.EBADF
    pidfd = os.pidfd_open(os.getpid())
    try:
        with pytest.raises(OSError, match="pidfd_getfd: Bad file descriptor") as refused:
            linux.get_descriptor(pidfd, 1 << 20)
    finally:
        os.close(pidfd)
    assert refused.value.errno == errno.EBADF


def test_descriptor_is_duplicated() -> None:
    ours, theirs = socket.socketpair()
    pidfd = os.pidfd_open(os.getpid())
    with ours, theirs:
        copy = linux.get_descriptor(pidfd, theirs.fileno())
        os.write(copy, b"here")
        assert ours.recv(10) == b"here"
    os.close(copy)
    os.close(pidfd)


def test_namespace_must_be_of_its_kind() -> None:
    namespace = os.open("/proc/self/ns/uts", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="setns") as refused:
            linux.enter(namespace, linux.CLONE_NEWNET)
    finally:
        os.close(namespace)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(("parent", "signalled"), [("os.getppid()", 0), ("1 << 22", -signal.SIGKILL)])
def test_a_parent_that_has_ended_before_is_noticed(parent: str, signalled: int) -> None:
    script = f"import os; from apfs.sandbox import linux; linux.die_with_parent(parent={parent})"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=TIMEOUT).returncode == signalled


def status_after(function: str, *before: str) -> dict[str, str]:
    """Return what /proc/PID/status of another process has after it has called a function of ours."""
    script = f"from apfs.sandbox import linux; linux.{function}(); print(open('/proc/self/status').read())"
    command = [*before, sys.executable, "-c", script]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(line.split(":\t", 1) for line in printed.splitlines() if ":\t" in line)


def test_new_privileges_are_forbidden() -> None:
    assert status_after("forbid_new_privileges")["NoNewPrivs"] == "1"


def test_ambient_capabilities_are_dropped() -> None:
    give = ("setpriv", "--inh-caps=+net_raw", "--ambient-caps=+net_raw", "--")
    if subprocess.run([*give, "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root can have ambient capabilities to drop")
    assert int(status_after("drop_ambient_capabilities", *give)["CapAmb"], 16) == 0


def test_process_dies_with_its_parent() -> None:
    # The end of standard output is seen when nobody has it open: neither the parent, which ends at once, nor the child.
    script = f"""
import os, signal
from apfs.sandbox import linux
reader, writer = os.pipe()
if os.fork() == 0:
    linux.die_with_parent()
    os.write(writer, b"ready")
    signal.alarm({TIMEOUT})
    signal.pause()
os.read(reader, 5)
"""
    command = [sys.executable, "-c", script]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT // 2)
