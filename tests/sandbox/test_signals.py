"""Whether the command of a sandbox has got what the terminal sends."""

from __future__ import annotations

import subprocess

import pytest

from apfs.sandbox import signals


@pytest.mark.parametrize(
    ("script", "started"),
    [
        pytest.param("echo; read line", False, id="there was no child yet"),
        pytest.param("/bin/true; echo; read line", True, id="the child has ended"),
        pytest.param("/bin/sleep 1000 & echo; read line; kill $!", True, id="the child runs"),
    ],
)
def test_a_command_has_started_even_if_it_has_ended(script: str, *, started: bool) -> None:
    command = ["/bin/sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert signals._has_started(process.pid) is started  # noqa: SLF001 -- of a sandbox it depends on the instant
        process.communicate(b"\n")
    assert signals._has_started(process.pid)  # noqa: SLF001
