"""Numbers and structs of seccomp and of other system calls are those of the installed kernel headers."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

import pytest

from apfs.sandbox import linux, nodes, seccomp
from tests.headers import evaluate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("seccomp_notif", seccomp.NOTIF),
        ("seccomp_notif_resp", seccomp.NOTIF_RESP),
        ("seccomp_notif_addfd", seccomp.NOTIF_ADDFD),
    ],
)
def test_layouts_of_seccomp(tmp_path: Path, name: str, layout: object) -> None:
    assert evaluate(tmp_path, {"size": f"sizeof(struct {name})"})["size"] == layout.size  # type: ignore[attr-defined]


def test_what_is_where_in_a_notification(tmp_path: Path) -> None:
    data = ("nr", "arch", "instruction_pointer", *(f"args[{number}]" for number in range(6)))
    fields = ("id", "pid", "flags", *(f"data.{field}" for field in data))
    offsets = evaluate(tmp_path, {field: f"offsetof(struct seccomp_notif, {field})" for field in fields})
    sizes = evaluate(tmp_path, {field: f"sizeof(((struct seccomp_notif *)0)->{field})" for field in fields})
    memory = bytearray(seccomp.NOTIF.size)
    for value, field in enumerate(fields):
        memory[offsets[field] : offsets[field] + sizes[field]] = value.to_bytes(sizes[field], sys.byteorder)
    assert seccomp.NOTIF.unpack(memory) == tuple(range(len(fields)))


def test_numbers_of_seccomp(tmp_path: Path) -> None:
    names = {
        "SECCOMP_SET_MODE_FILTER": seccomp.SECCOMP_SET_MODE_FILTER,
        "SECCOMP_FILTER_FLAG_NEW_LISTENER": seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER,
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": seccomp.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        "SECCOMP_RET_ALLOW": seccomp.SECCOMP_RET_ALLOW,
        "SECCOMP_RET_USER_NOTIF": seccomp.SECCOMP_RET_USER_NOTIF,
        "SECCOMP_USER_NOTIF_FLAG_CONTINUE": seccomp.SECCOMP_USER_NOTIF_FLAG_CONTINUE,
        "SECCOMP_IOCTL_NOTIF_RECV": seccomp.NOTIF_RECV,
        "SECCOMP_IOCTL_NOTIF_SEND": seccomp.NOTIF_SEND,
        "SECCOMP_IOCTL_NOTIF_ID_VALID": seccomp.NOTIF_ID_VALID,
        "SECCOMP_IOCTL_NOTIF_ADDFD": seccomp.NOTIF_ADDFD_REQUEST,
        "SYS_seccomp": seccomp.seccomp_number(),
    }
    assert evaluate(tmp_path, {name: name for name in names}) == names


def test_numbers_of_system_calls(tmp_path: Path) -> None:
    names = {
        "CLONE_NEWUSER": linux.CLONE_NEWUSER,
        "CLONE_NEWNET": linux.CLONE_NEWNET,
        "PR_SET_PDEATHSIG": linux.PR_SET_PDEATHSIG,
        "PR_SET_NO_NEW_PRIVS": linux.PR_SET_NO_NEW_PRIVS,
        "PR_CAP_AMBIENT": linux.PR_CAP_AMBIENT,
        "PR_CAP_AMBIENT_CLEAR_ALL": linux.PR_CAP_AMBIENT_CLEAR_ALL,
        "SECCOMP_ADDFD_FLAG_SETFD": seccomp.SECCOMP_ADDFD_FLAG_SETFD,
        "SYS_pidfd_getfd": linux.PIDFD_GETFD,
        "SYS_openat2": linux.OPENAT2,
        "RESOLVE_NO_MAGICLINKS": linux.RESOLVE_NO_MAGICLINKS,
        "RESOLVE_BENEATH": linux.RESOLVE_BENEATH,
        "RESOLVE_IN_ROOT": linux.RESOLVE_IN_ROOT,
    }
    assert evaluate(tmp_path, {name: name for name in names}) == names


def test_calls_for_files(tmp_path: Path) -> None:
    """Numbers and layouts of the machine that the tests run on; for others see test_architectures.py."""
    calls = seccomp.FILE_CALLS[seccomp.MACHINES[platform.machine()]]
    names = {"fstat": calls.fstat, "newfstatat": calls.newfstatat, "openat": calls.openat, "statx": calls.statx}
    numbers = {f"SYS_{name}": number for name, number in names.items()}
    assert evaluate(tmp_path, {name: name for name in numbers}) == numbers
    if calls.open is not None:
        assert evaluate(tmp_path, {"open": "SYS_open"})["open"] == calls.open
    layouts = {"stat": nodes.STATS[platform.machine()], "statx": nodes.STATX}
    for (name, layout), prefix in zip(layouts.items(), ("st", "stx"), strict=True):
        expressions = {"size": f"sizeof(struct {name})", "ids": f"offsetof(struct {name}, {prefix}_uid)"}
        expressions["gid"] = f"offsetof(struct {name}, {prefix}_gid)"
        assert evaluate(tmp_path, expressions) == {"size": layout.size, "ids": layout.ids, "gid": layout.ids + 4}
