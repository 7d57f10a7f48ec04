"""Becoming QEMU: when the plugin goes with it, what it gets from us, and what is said if it cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apfs.vmm import build, emulator

HERE = Path(__file__).parent
WORDS = [sys.executable, "-m", "apfs.vmm"]
S390X, X86 = "/usr/bin/qemu-system-s390x", "/usr/bin/qemu-system-x86_64"


def be(*arguments: str, program: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Be QEMU, and return what it said."""
    environment = {**os.environ, **env, **({} if program is None else {"APFS_QEMU": program})}
    return subprocess.run(
        [*WORDS, *arguments], check=False, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    ("qemu", "arguments", "machine"),
    [
        (S390X, "", True),
        (S390X, "-m 32 -S", True),
        (S390X, "-M s390-ccw-virtio", True),
        (S390X, "-machine s390-ccw-virtio-7.2,usb=off,memory-backend=s390.ram", True),
        (S390X, "--machine type=s390-ccw-virtio,accel=tcg", True),
        (S390X, "-machine accel=tcg,type=s390-ccw-virtio", True),
        (S390X, "-machine accel=tcg", True),
        (S390X, "-M none -machine s390-ccw-virtio", True),
        (S390X, "-M s390-ccw-virtio -machine accel=tcg", True),
        (S390X, "-M s390-ccw-virtio -M none", False),
        (S390X, "-S -no-user-config -nodefaults -nographic -machine none,accel=kvm:tcg -daemonize", False),
        (S390X, "-M help", False),
        (S390X, "-version", False),
        (S390X, "--version", False),
        (S390X, "-M s390-ccw-virtio -help", False),
        (X86, "-machine q35", False),
        (X86, "-m 32", False),
        (X86, "", False),
    ],
)
def test_machines_that_can_have_an_ap_bus(qemu: str, arguments: str, *, machine: bool) -> None:
    assert emulator.needs_plugin(qemu, arguments.split()) is machine


@pytest.mark.parametrize(
    ("arguments", "plugin"),
    [("-machine none", False), ("-machine s390-ccw-virtio -nodefaults -S", True), ("-nodefaults -S", True)],
)
def test_process_becomes_qemu(system_qemu: str, arguments: str, *, plugin: bool) -> None:
    words = [*arguments.split(), "-display", "none", "-qmp", "stdio"]
    with subprocess.Popen([*WORDS, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "QMP" in json.loads(process.stdout.readline())
        proc = Path(f"/proc/{process.pid}")
        assert str((proc / "exe").readlink()) == os.path.realpath(system_qemu)
        was_given = (proc / "cmdline").read_text().split("\0")[1:-1]
        process.communicate('{"execute": "qmp_capabilities"}{"execute": "quit"}')
    assert process.returncode == 0
    assert was_given[2 if plugin else 0 :] == words
    assert (was_given[0] == "-plugin") is plugin


def test_status_and_messages_are_those_of_qemu(system_qemu: str) -> None:
    assert system_qemu
    done = be("-machine", "s390-ccw-virtio", "-no-such-option")
    assert (done.returncode, done.stderr) == (1, "qemu-system-s390x: -no-such-option: invalid option\n")


def test_signals_and_descriptors_are_inherited(tmp_path: Path) -> None:
    script = tmp_path / "qemu"
    script.write_text('#!/bin/sh\ngrep SigIgn /proc/$$/status\ncat "/proc/self/fd/$4"\n')
    script.chmod(0o755)
    reader, writer = os.pipe()
    os.write(writer, b"monitor")
    os.close(writer)
    try:
        done = subprocess.run(
            [*WORDS, "-machine", "none", "-fd", str(reader)],
            env={**os.environ, "APFS_QEMU": str(script)},
            pass_fds=[reader],
            check=True,
            capture_output=True,
            text=True,
        )
    finally:
        os.close(reader)
    assert done.stdout == "SigIgn:\t0000000000000000\nmonitor"


def test_link_that_hides_qemu(system_qemu: str, tmp_path: Path) -> None:
    program, hidden = tmp_path / "apfs-qemu", tmp_path / "bin/qemu-system-s390x"
    program.write_text(f"#!{sys.executable}\nfrom apfs.vmm.emulator import main\nmain()\n")
    program.chmod(0o755)
    hidden.parent.mkdir()
    hidden.symlink_to(program)
    path = f"{hidden.parent}:{Path(system_qemu).parent}"
    done = subprocess.run([hidden, "-version"], env={**os.environ, "PATH": path}, check=True, capture_output=True)
    assert done.stdout.startswith(b"QEMU emulator version ")


@pytest.mark.parametrize(
    ("program", "env", "message"),
    [
        (None, {"PATH": "/nowhere"}, "no qemu-system-s390x: apt install qemu-system-misc"),
        ("/nowhere/qemu", {}, "/nowhere/qemu: No such file or directory"),
        ("/usr/bin/true", {}, "/usr/bin/true was built without plugins (--enable-plugins)"),
        (None, {"APFS_QEMU_PLUGIN": "/nowhere/plugin.so"}, "APFS_QEMU_PLUGIN: no such file: /nowhere/plugin.so"),
    ],
)
def test_what_is_missing_is_told_in_one_line(program: str | None, env: dict[str, str], message: str) -> None:
    done = be("-machine", "s390-ccw-virtio", program=program, **env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"apfs: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("major", "minor", "message"),
    [
        ("9", "2", "apfs: QEMU 9.2.4 is not one that can be given vfio-ap: that works with 7.2 and 10.0\n"),
        ("7", "3", "apfs: QEMU 7.3.4 is not one that can be given vfio-ap: that works with 7.2 and 10.0\n"),
        ("10", "0", "apfs: this QEMU 10.0.4 cannot be given vfio-ap: it does not export error_fatal\n"),
    ],
)
def test_unknown_qemu_is_refused(tmp_path: Path, major: str, minor: str, message: str) -> None:
    program = tmp_path / "qemu"
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-rdynamic", "-o", program, HERE / "unknown.c"], check=True)
    done = subprocess.run([program, build.plugin(), major, minor], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_qemu_for_other_machines_refuses_the_plugin() -> None:
    command = [X86, "-plugin", f"file={build.plugin()}", "-machine", "none", "-display", "none"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "apfs: QEMU for x86_64 cannot be given vfio-ap, only that for s390x\n")
