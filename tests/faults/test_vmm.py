"""`apfs libvirtd` and `apfs qemu` are killed, or get Ctrl-C, while they prepare: nothing stays."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.mounts import places
from tests.conftest import apfs
from tests.faults.points import APFS, NONE, Commands, Fault, Outcome, spread, started
from tests.faults.shortages import in_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

NEEDS_ROOT = "libvirtd is for root only"


@pytest.fixture
def short(faultpoint: Path) -> Iterator[Commands]:
    """Commands with a TMPDIR that has a short name, as sockets need it."""
    with tempfile.TemporaryDirectory() as tmp:
        yield Commands(faultpoint, Path(tmp))


def program(directory: Path, text: str) -> str:
    """Return a program in libvirtd's or the compiler's place."""
    file = directory / "program"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def preparations(short: Commands, directory: Path) -> Outcome:
    """Return what `apfs libvirtd` does until it starts libvirtd, and a little more, as that ends at once."""
    apfs("qemu", "--build")  # else the compiler would be the first process that it starts, but only once
    whole = short.run(NONE, *APFS, "libvirtd", "--libvirtd", program(directory, "exit 1"))
    assert (whole.status, whole.said) == (1, "apfs: libvirtd failed: it said nothing\n")
    return whole


def test_interrupted_libvirtd(short: Commands, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip(NEEDS_ROOT)
    whole = preparations(short, tmp_path)
    for_ever = (*APFS, "libvirtd", "--libvirtd", program(tmp_path, "exec sleep 1000"))
    statuses = []
    # Once libvirtd has started, there may be no further call until it ends.
    for call in spread(started(short), whole.first_fork, 4):
        outcome = short.run(Fault(call, number=signal.SIGINT, group=True, until_fork=True), *for_ever)
        assert outcome.said == ""
        assert list(short.tmp.iterdir()) == []
        statuses.append(outcome.status)
    assert set(statuses) == {130, 0}
    assert statuses == sorted(statuses, reverse=True)


def test_libvirtd_is_killed(short: Commands, tmp_path: Path) -> None:
    """The next one clears away what was made."""
    if os.geteuid():
        pytest.skip(NEEDS_ROOT)
    whole = preparations(short, tmp_path)
    words = (*APFS, "libvirtd", "--libvirtd", program(tmp_path, "exec sleep 1000"))
    left = 0
    for call in spread(whole.first_mkdir + 1, whole.first_fork, 3):
        assert short.run(Fault(call, until_fork=True), *words).status == 137
        left += len(list(short.tmp.iterdir()))
    assert left
    with places.directory("apfs-libvirt-", str(short.tmp)) as mine:
        assert list(short.tmp.iterdir()) == [mine]
    assert list(short.tmp.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_plugin_is_not_compiled_to_the_end(faultpoint: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Of what was begun nothing stays in the cache, at the latest after the next one."""
    compiler = program(tmp_path, "exit 1")
    group = "-g" if number == signal.SIGINT else ""
    script = f"""
        export CC={compiler} PYTHONDONTWRITEBYTECODE=1
        mount -t tmpfs none /var/cache
        build() {{ {faultpoint} "$@" -- "$python" -P -m apfs qemu --build; }}
        first=$(build 2> /dev/null | sed -n '2p' | cut -d ' ' -f 3)
        for step in 1 4 20; do
            build -s {int(number)} {group} -n $((first + step)) | head -n 1
            {"ls -A /var/cache/apfs" if group else ""}
        done
        build 2> /dev/null | head -n 1
        ls -A /var/cache/apfs
    """
    result = in_namespace(script, tmp_path)
    assert (result.stdout, result.stderr) == (f"{128 + number}\n" * 3 + "2\n", ""), result


COMPILER = """
while [ "$1" != -o ]; do shift; done
echo > "$2"
"""


def test_what_was_left_of_compiling_goes_when_the_plugin_is_used(tmp_path: Path) -> None:
    """It may be left when the plugin itself is there."""
    script = f"""
        export CC={program(tmp_path, COMPILER)}
        mount -t tmpfs none /var/cache
        apfs qemu --build
        mkdir /var/cache/apfs/.qemu-plugin-left
        apfs qemu --build
        ls -A /var/cache/apfs
    """
    first, second, *files = in_namespace(script, tmp_path).stdout.splitlines()
    assert first == second == f"/var/cache/apfs/{files[0]}"
    assert len(files) == 1
