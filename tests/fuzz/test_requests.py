"""Requests of shapes that no program uses, through a mount: each is answered as by Linux, and the server goes on."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

from apfs.errors import errno_name
from tests.conftest import create_mdev, server_of
from tests.fuzz.requests import NAMES, some_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REQUESTS = 800


def test_requests(mount: Callable[..., Path]) -> None:
    host = mount("default", "--clock", "manual")
    create_mdev(host)
    server = server_of(host)
    descriptors = len(os.listdir(f"/proc/{server}/fd"))  # noqa: PTH208 -- names
    files = [
        os.path.relpath(os.path.join(place, name), host)  # noqa: PTH118 -- texts
        for place, directories, names in os.walk(host)
        for name in (*names, *directories)
    ]
    random = Random(17)  # noqa: S311 -- no secrets
    for _ in range(REQUESTS):
        some_request(host, [f"/{path}" for path in files if not path.startswith("ctl/sandbox")], random)
    assert server_of(host) == server
    assert len(os.listdir(f"/proc/{server}/fd")) == descriptors  # noqa: PTH208
    assert '"type": "crash"' not in (host / "ctl/journal").read_text()


def test_names(mount: Callable[..., Path]) -> None:
    """No name of bytes makes the server stumble: it is not there, or too long (where Linux says so for a server)."""
    host = mount()
    answers = {}
    for name in NAMES:
        try:
            os.lstat(os.fsencode(host / "sys/devices/ap") + b"/" + name)
        except OSError as error:
            answers[name] = errno_name(error.errno or 0)
    assert {answers[name] for name in answers if len(name) <= 255} == {"ENOENT"}
    assert {answers[name] for name in answers if len(name) > 255} <= {"ENOENT", "ENAMETOOLONG"}
    assert set(NAMES) - answers.keys() == {b"card05/"}
