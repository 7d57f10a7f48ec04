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
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with assemble.Assembler(Path("/nosuch"), network=False) as assembler:
            os.read(assembler.gate, 1 << 16)
            assembler.tell("files")
            assembler.tell(other.pid)
            assert assembler.problem() == "umount2: No such file or directory"
        other.communicate()


def test_a_defect_is_no_success(capfd: pytest.CaptureFixture[str]) -> None:
    """A process that ends with an exception ends there, with a status and without what its parent would do next."""
    with assemble.Assembler("no path", network=False) as assembler:  # type: ignore[arg-type]
        assembler.tell("files")
        assert assembler.problem() == "a process of apfs was killed, or failed"
        ended = os.waitid(os.P_PID, assembler.pid, os.WEXITED | os.WNOWAIT)
        assert ended
        assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 1)
    assert "TypeError" in capfd.readouterr().err
