"""How bwrap is made to wait while the directories of a sandbox are put together."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.sandbox import assemble

if TYPE_CHECKING:
    import pytest


def test_the_gate_tells_that_bwrap_has_come_to_it(tmp_path: Path) -> None:
    reader, writer = assemble.make_gate()
    poll = select.poll()
    poll.register(writer, select.POLLOUT)
    assert poll.poll(0) == []
    words = ["--dev-bind", "/", "/", "--tmpfs", str(tmp_path), "--file", str(reader), f"{tmp_path}/gate"]
    with subprocess.Popen(["bwrap", *words, "--", "echo", "through"], pass_fds=[reader], stdout=subprocess.PIPE) as box:
        os.close(reader)
        assert poll.poll() == [(writer, select.POLLOUT)]
        assert box.poll() is None
        os.close(writer)
        assert box.communicate()[0] == b"through\n"


def test_why_a_sandbox_cannot_be_put_together() -> None:
    """A process that is not bwrap's waits at no gate, and has nothing in the place where bwrap works."""
    reader, writer = assemble.make_gate()
    os.read(reader, 1 << 16)
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        child, done = assemble.start(Path("/nosuch"), "files", other.pid, writer)
        os.waitpid(child, 0)
        assert os.read(done, 1 << 16) == b"umount2: No such file or directory"
        other.communicate()
    for descriptor in (reader, writer, done):
        os.close(descriptor)


def test_a_defect_is_no_success(capfd: pytest.CaptureFixture[str]) -> None:
    """A process that ends with an exception ends there, with a status and without what its parent would do next."""
    reader, writer = assemble.make_gate()
    child, done = assemble.start("no path", "files", os.getpid(), writer)  # type: ignore[arg-type]
    os.close(writer)
    assert os.read(done, 100) == b""
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert "TypeError" in capfd.readouterr().err
    for descriptor in (reader, done):
        os.close(descriptor)
