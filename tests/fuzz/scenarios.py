"""Scenarios: whatever a file has, there is a host, or a message that says what is wrong and where."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from apfs.host import Host
from apfs.scenario.model import ScenarioError
from apfs.scenario.reader import load, loads, text_of
from apfs.scenario.writer import dumps
from apfs.testing.files import Shell
from tests.fuzz import toml

if TYPE_CHECKING:
    from random import Random

    from apfs.scenario.model import Scenario

_WITHOUT_LINE = ("not a text in UTF-8", "longer than", "a number has thousands of digits")
"""How messages begin that are about no line."""


def read(data: bytes) -> Scenario:
    """Read a file that has these bytes."""
    file = os.memfd_create("scenario.toml")
    try:
        os.write(file, data)
        return load(f"/proc/self/fd/{file}")
    finally:
        os.close(file)


def check_message(error: ScenarioError, data: bytes) -> None:
    """Make sure that a message can be printed, and names a line of the text."""
    assert error.reason
    assert error.reason.isprintable(), error.reason
    assert len(error.reason) < 500
    if error.reason.startswith(_WITHOUT_LINE):
        assert error.line == 0
    else:
        text = data.decode()
        assert 1 <= error.line <= text.replace("\r\n", "\n").count("\n") + 1, (str(error), error.line)


def answer(data: bytes) -> str:
    """Read a scenario, write it, and boot it; return how far that came."""
    try:
        scenario = read(data)
    except ScenarioError as error:
        check_message(error, data)
        return "refused"
    assert loads(data.decode()) == scenario
    assert loads(dumps(scenario)) == scenario
    assert loads(text_of(scenario)) == scenario
    try:
        host = Host(scenario)
    except ScenarioError as error:
        check_message(error, data)
        return "impossible"
    assert Shell(host).status()["driver"] == scenario.driver
    return "booted"


def some_text(random: Random) -> int:
    """See what becomes of some text."""
    one = toml.text(random)
    try:
        check(one)
    except BaseException as error:
        error.add_note(repr(one.data))
        raise
    return 1


def check(one: toml.Text) -> str:
    """See what becomes of a text, and whether its mistake is found where it is."""
    became = answer(one.data)
    if one.line and answer(one.base) != "refused":
        assert became == "refused"
        assert line_of_mistake(one.data) == one.line
    return became


def line_of_mistake(data: bytes) -> int:
    """Return the line that the message about a text names; 0 if there is nothing wrong."""
    try:
        read(data)
    except ScenarioError as error:
        return error.line
    return 0
