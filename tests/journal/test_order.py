"""Cause and consequence in the journal: the outcome of a request comes after all that it led to."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from apfs.errors import KernelError
from apfs.journal.records import Ioctl, LogLine, QueuesReset, Record, Refusal, Store, Uevent, Verb
from apfs.vfio.container import Container, GroupFile
from apfs.vfio.device_file import DeviceFile
from apfs.vfio.request import IoctlFile, Request
from tests.hosts import M1, M2, Bench, built

if TYPE_CHECKING:
    from collections.abc import Callable

RESET = 0x3B6F
FAILING = "fail-reset 05.0004"


def mask(bench: Bench) -> None:
    bench.echo("-7", "/sys/bus/ap/apmask")


def scan(bench: Bench) -> None:
    bench.console("scan")


def help_(bench: Bench) -> None:
    bench.console("help")


def reset(bench: Bench) -> None:
    assert device(bench).ioctl(Request(RESET, 0)).value == 0


def failing_reset(bench: Bench) -> None:
    assert device(bench).ioctl(Request(RESET, 0)).value == -errno.EIO


def failing_reset_by_file(bench: Bench) -> None:
    bench.run_guest(M1)
    bench.mark()
    bench.echo("1", f"/dev/vfio-ap/{M1}/reset")


def taken(bench: Bench) -> None:
    bench.create(M2)
    bench.put(M2, "assign_adapter", "5")
    bench.mark()
    bench.put(M2, "assign_domain", "4")


def device(bench: Bench) -> IoctlFile:
    """Open M1 as a program does."""
    container = Container(bench.host.vfio)
    group = GroupFile(bench.host.journal, bench.host.vfio.devices[0].group)
    number = (5).to_bytes(4, "little")
    assert group.ioctl(Request(0x3B68, 0, number, container)).value == 0
    assert container.ioctl(Request(0x3B66, 3)).value == 0
    reply = group.ioctl(Request(0x3B6A, 0, M1.encode() + b"\0"))
    assert reply.file
    assert isinstance(reply.file.file, DeviceFile)
    bench.mark()
    return reply.file.file


@pytest.mark.parametrize(
    ("before", "act", "outcome", "led_to"),
    [
        (None, mask, Store("/sys/bus/ap/apmask", "-7\n"), Uevent),
        ("plug 9 CEX8C", scan, Verb("scan"), Uevent),
        (None, help_, Verb("help"), LogLine),
        (None, reset, Ioctl(M1, "VFIO_DEVICE_RESET"), QueuesReset),
        (FAILING, failing_reset, Refusal, QueuesReset),
        (FAILING, failing_reset_by_file, Refusal, QueuesReset),
        (None, taken, Refusal, LogLine),
    ],
)
def test_the_outcome_is_the_last_record_and_the_only_one_of_its_kind(
    before: str | None, act: Callable[[Bench], None], outcome: Record | type[Record], led_to: type[Record]
) -> None:
    bench = built()
    if before:
        bench.console(before)
    bench.mark()
    with suppress(KernelError):
        act(bench)
    *others, last = bench.journal
    assert last == outcome or type(last) is outcome
    assert any(isinstance(record, led_to) for record in others)
    assert not [record for record in others if isinstance(record, Store | Verb | Ioctl | Refusal)]


def test_a_refused_verb_is_a_refusal_and_nothing_else() -> None:
    bench = built()
    bench.mark()
    with suppress(KernelError):
        bench.console("unplug 9")
    (record,) = bench.journal
    assert isinstance(record, Refusal)
    assert record.operation == "console"
