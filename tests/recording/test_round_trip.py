"""A recording describes the machine that it was made from: recording and booting are each other's inverse."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given

from apfs.errors import KernelError
from apfs.host import Host
from apfs.journal.records import Read, Refusal
from apfs.recording.recorder import record
from apfs.scenario.reader import gallery, loads
from apfs.scenario.writer import dumps
from apfs.testing.files import Shell
from tests.recording.strategies import scenarios, visible

if TYPE_CHECKING:
    from apfs.scenario.model import Scenario

# Recording 65,536 queues takes half a minute, and shows nothing that fewer do not.
SMALL = [name for name in gallery() if name != "largest"]


def sysfs(host: Host) -> dict[str, str]:
    """Return all of a host's sysfs: modes, link texts and contents, by path.

    Not what reading changes: asking a card in vain makes the bus scan (ap_bus_force_rescan). Nor what differs between
    an LPAR and a guest of KVM, which a recording does not tell.
    """
    shell, found = Shell(host), {}
    for path, node in shell.find("/sys"):
        if path.startswith("/sys/firmware/uv"):
            continue
        if stat.S_ISLNK(node.mode):
            found[path] = f"link {shell.readlink(path)}"
        elif stat.S_ISREG(node.mode) and node.mode & 0o444:
            try:
                found[path] = f"{node.mode:o} {shell.cat(path)}"
            except KernelError as error:
                found[path] = f"{node.mode:o} {error.name}"
        else:
            found[path] = f"{node.mode:o}"
    for name in ("scans", "bindings_complete_count"):
        found[f"/sys/bus/ap/{name}"] = "a counter"
    return found


@given(scenarios())
def test_a_scenario_is_what_its_text_says(scenario: Scenario) -> None:
    assert loads(dumps(scenario, ["One line.", "Another one."])) == scenario


@given(scenarios())
def test_a_recording_is_the_machine(scenario: Scenario) -> None:
    # QCI without any facility looks like none, but vfio_ap heeds it: guest matrices differ.
    assume(scenario.qci.facilities or not scenario.qci.supported or not scenario.mdevs)
    host = Host(scenario)
    host.scan()  # so that one that reading leads to finds nothing
    before = host.journal.last
    recording = record(Shell(host))
    assert recording.unread == ()
    # Reading may make the bus scan. EIO is an answer, too: a queue that is usable without having been associated
    # (se_associate_show).
    told = [record for number, record in host.journal if number > before and not isinstance(record, Read)]
    assert [
        record for record in told if not (isinstance(record, Refusal) and record.path.endswith("/se_associate"))
    ] == []
    again = loads(recording.text())
    assert again == recording.scenario
    # A Secure Execution guest changes the bind states of its queues.
    bind_states = not any(spec.guest and spec.secure_execution for spec in scenario.mdevs)
    assert visible(again, bind_states=bind_states) == visible(scenario, bind_states=bind_states)
    copy = Host(again)
    assert sysfs(copy) == sysfs(host)
    assert record(Shell(copy)).text() == recording.text()


@pytest.mark.parametrize("name", SMALL)
def test_records_of_the_gallery(name: str) -> None:
    scenario = loads(gallery()[name])
    host = Host(scenario)
    recording = record(Shell(host), name)
    assert visible(recording.scenario) == visible(scenario)
    assert sysfs(Host(loads(recording.text()))) == sysfs(host)
