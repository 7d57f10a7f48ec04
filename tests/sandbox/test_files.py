"""Device and migration files are ordinary descriptors: duplicated, inherited, passed on, polled, closed."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.conftest import TIMEOUT
from tests.sandbox.conftest import ENV, EXEC, run, words_of
from tests.sandbox.programs import files


def test_a_migration_file_is_a_stream_of_its_own() -> None:
    assert run(files.stream).stdout.splitlines() == [
        *("ESPIPE", "ESPIPE", "EBADF"),
        "True False ENOTTY",
        "928000000e540307",
        "0547000000000000",
        "0000000100000000 b''",
    ]


def test_a_migration_file_can_be_spliced() -> None:
    assert run(files.spliced).stdout.splitlines() == [
        "00000001 12 8 0",
        "00000000928000000e5403070547000000000000 b'' EINVAL",
    ]


def test_a_device_is_closed_with_its_last_descriptor() -> None:
    assert run(files.last_descriptor).stdout.splitlines() == ["shared state 1", "1 EBUSY", "0 ok", "2 True"]


def test_too_many_open_files() -> None:
    lines = run(files.too_many).stdout.splitlines()
    assert lines == ["EMFILE", "unchanged (3, 55) state 3", "EMFILE", "[] 0", "ok"]


def test_closing_many_files_is_done_before_the_next_open() -> None:
    """Where the kernel can be told so: of a dozen files that are closed at once it tells a server later otherwise."""
    if os.geteuid():
        pytest.skip("fusectl is mounted by root")
    # Most machines have this mounted; containers do not.
    script = 'mount -t fusectl none /sys/fs/fuse/connections && exec "$@"'
    command = ["unshare", "--mount", "bash", "-c", script, "test", *EXEC, "--", *words_of(files.many_closed_at_once)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT, env=ENV)
    assert result.stdout.split() == ["True"] * 3


def test_files_made_for_a_process_cannot_be_opened_again() -> None:
    result = run(files.opened_again)
    assert set(result.stdout.split()) <= {"ENXIO", "ENOENT"}
    assert "ENXIO" in result.stdout
