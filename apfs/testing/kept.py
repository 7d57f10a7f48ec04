"""Files saved for a failed test's hosts, named after the test."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from zlib import crc32

from apfs.errors import KernelError
from apfs.report import sources
from apfs.report.page import page
from apfs.writing import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apfs.testing.files import Files

_LONGEST = 180
"""Characters of a test's name in the name of a file, which may have 255 bytes."""


def place(directory: str, test: str, ending: str) -> Path:
    """Return the file of a test, by its node id, in a directory, which is made."""
    function, bracket, parameters = test.partition("[")
    stem = function.replace("::", ".").replace("/", ".") + bracket + quote(parameters, safe="[]=,+@ ")
    stem = stem[:_LONGEST] + (f"~{crc32(test.encode()):08x}" if len(stem) > _LONGEST else "")
    path = Path(directory, f"{stem}.{ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def journal(directory: str, test: str, name: str, host: Files) -> tuple[Path | None, str]:
    """Keep the journal of a host; return its file and the command that takes it, or None and why it cannot be kept."""
    try:
        path = place(directory, test, f"{name}.json")
        write_whole(path, host.recording())
    except (OSError, KernelError) as error:
        return None, f"cannot be kept: {error}"
    return path, f"apfs replay {shlex.quote(str(path))}"


def report(directory: str, test: str, hosts: Mapping[str, Files]) -> tuple[Path | None, str]:
    """Draw what happened on the hosts of a test; return the page, None without one, and what is to be said of it."""
    stories, trouble = [], []
    for name, host in hosts.items():
        try:
            stories.append(sources.asked(name, host.recording(), host.cat("/ctl/status")))
        except OSError as error:
            trouble.append(f"{name} cannot be drawn, the host's server is gone: {error}")
        except KernelError as error:
            trouble.append(f"{name} cannot be drawn, the guest has ended: {error}")
    if not stories:
        return None, "\n".join(trouble)
    try:
        path = place(directory, test, "html")
        write_whole(path, page(stories, test))
    except OSError as error:
        return None, "\n".join([*trouble, f"cannot be written: {error}"])
    return path, "\n".join([*trouble, str(path)])
