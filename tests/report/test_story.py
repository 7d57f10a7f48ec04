"""Stories: which records belong together, what changed, and in which order two hosts did it."""

from __future__ import annotations

import contextlib
import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hypothesis import given

from apfs import History, Host, KernelError, Shell, load
from apfs.ctl.status import document
from apfs.journal.records import Migration, Refusal, Store, Uevent
from apfs.replay.replay import begin
from apfs.report.moments import Moment, moments
from apfs.report.page import page
from apfs.report.picture import picture
from apfs.report.sources import asked, recorded
from apfs.report.story import SHOWN, story, together
from apfs.scenario.reader import loads
from tests.examples import times
from tests.hosts import CREATE, M1, M2, MDEV_DRIVER, Bench
from tests.replay.actors import CARDS, Actor, history
from tests.replay.test_replay import STEPS
from tests.report.stories import FIRST, MARKUP, MDEVS, SECOND, a_day, told
from tests.report.test_picture import patched

if TYPE_CHECKING:
    from apfs.journal.records import Record

UUID = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
CLIENT = f"/dev/vfio-ap/{UUID}"
Step = dict[str, Any]


def only(*records: Record) -> list[Step]:
    """Return the steps of records of an empty host, of which the first one has the number 4."""
    moment = Moment(0, picture(document(Host(load("empty")))))
    steps: list[Step] = story("x", History(tuple(enumerate(records, 4))), iter([moment]), {})["steps"]
    return steps


def test_a_request_and_what_it_led_to_are_a_step() -> None:
    steps = told("default", lambda shell: shell.console("unplug 5", "scan"))["steps"]
    assert [(step["kind"], step["what"]) for step in steps] == [("verb", "unplug 5"), ("verb", "scan")]
    assert "effects" not in steps[0]
    removed = [text for _, kind, text in steps[1]["effects"] if kind == "uevent" and text.startswith("remove ")]
    assert len(removed) == 5
    assert (steps[1]["first"], steps[1]["last"]) == (2, 2 + len(steps[1]["effects"]))


def test_a_refusal_has_its_error_and_its_reason() -> None:
    story = told("kernel-doc", a_day)
    (step,) = [step for step in story["steps"] if step.get("errno") == "EADDRINUSE"]
    assert step["what"] == "assign_adapter ← 6"
    assert step["where"] == f"{MDEVS}/{SECOND}"
    assert step["why"].startswith("EADDRINUSE: queue 06.0047 is assigned to ")
    assert "patch" not in step


def test_what_comes_of_no_request_is_a_step_of_its_own() -> None:
    event = Uevent("change", "/devices/ap", "ap", ())
    first, second = only(Store("/sys/a/b", "1\n"), event)
    assert (first["what"], first["where"], first["last"]) == ("b ← 1", "/sys/a", 4)
    assert (second["kind"], second["first"], second["last"]) == ("none", 5, 5)
    assert second["effects"] == [[5, "uevent", "change /devices/ap"]]


def test_patches_lead_from_the_first_state_to_the_last() -> None:
    shell = Shell(Host(load("kernel-doc")))
    a_day(shell)
    told_of = told("kernel-doc", a_day)
    state = told_of["first"]
    for step in told_of["steps"]:
        state = patched(state, step.get("patch", {}))
    cards = {apid: told_of["cards"][number] for apid, number in state["cards"].items()}
    assert {**state, "cards": cards} == picture(document(shell.host))
    assert told_of["axes"] == {"adapters": [5, 6, 7], "domains": [0x04, 0x47, 0xAB, 0xFF]}


def pictures_are_whole(journal: History) -> None:
    """Compare the picture of each moment with one of all that there is then."""
    again, requests = begin(journal)
    first, *later = moments(journal)
    assert first.picture == picture(document(again))
    for moment, difference in zip(later, requests, strict=True):
        assert difference is None
        assert moment.picture == picture(document(again))


@times(3)
@given(steps=STEPS)
def test_a_picture_of_parts_is_the_whole_one(steps: list[tuple[int, int, int]]) -> None:
    """What a moment has from the one before is right, whatever has happened."""
    actor = Actor(Host(loads(CARDS)))
    for uuid, adapter in ((M1, 5), (M2, 6)):
        actor.shell.write(CREATE, uuid)
        for domain in (4, 0x47):
            actor.shell.echo(domain, f"{MDEVS}/{uuid}/assign_domain")
        actor.shell.echo(adapter, f"{MDEVS}/{uuid}/assign_adapter")
    for step in steps:
        actor.take(*step)
    pictures_are_whole(history(actor.host))


def test_requests_that_concern_several_devices_or_what_is_left_of_them() -> None:
    bench = Bench(CARDS)
    bench.create(M1, M2)
    bench.assign(M1, [5], [4, 0x47])
    bench.assign(M2, [6], [4, 0x47])
    bench.run_guest(M2)
    bench.console("remove-domain 0x47", "scan")
    bench.put(M1, "assign_domain", 0xAB)
    bench.console("unplug 6", "scan")
    bench.guest(M2).echo("0x0", "/sys/bus/ap/apmask")
    bench.run_guest(M2, 0)
    bench.echo(M2, f"{MDEV_DRIVER}/unbind")
    bench.put(M1, "unassign_domain", 4)
    bench.put(M2, "remove", 1)
    bench.create(M2)
    bench.put(M2, "remove", 1)
    bench.put(M1, "remove", 1)
    pictures_are_whole(history(bench.host))


def test_a_step_costs_as_much_as_it_changes() -> None:
    """A request that concerns one device of many leaves the others as they are: nobody looks at them."""
    shell = Shell(Host(load("default")))
    shell.echo("-5", "/sys/bus/ap/apmask")
    many = [f"{number:08x}{FIRST[8:]}" for number in range(50)]
    for uuid in many:
        shell.echo(uuid, f"{MDEVS}/mdev_supported_types/vfio_ap-passthrough/create")
    before = shell.journal.last
    last = many[-1]
    shell.echo(5, f"{MDEVS}/{last}/assign_adapter")
    shell.echo(4, f"{MDEVS}/{last}/assign_domain")
    shell.echo(1, f"/dev/vfio-ap/{last}/guest")
    shell.echo(0, f"/dev/vfio-ap/{last}/guest")
    shell.echo(1, f"{MDEVS}/{many[0]}/remove")
    found = [moment for moment in moments(History.parse(shell.recording())) if moment.after >= before]
    for one, other in pairwise(found):
        made = [uuid for uuid, mdev in other.picture["mdevs"].items() if mdev is not one.picture["mdevs"][uuid]]
        assert set(made) <= {last}


def test_65536_queues_that_move_are_a_small_page() -> None:
    told_of = told("largest", lambda shell: shell.echo("0x0", "/sys/bus/ap/apmask"))
    first = told_of["steps"][0]
    assert len(first["effects"]) == SHOWN
    assert first["left"]["uevent"] == first["last"] - first["first"] - SHOWN
    assert len(first["patch"]["cards"]) == 256
    assert len(told_of["cards"]) == 2
    assert len(page([told_of], "largest")) < 80_000


def host(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"steps": [{"kind": "store", "what": "x", **step} for step in steps]}


def moved(before: str, after: str, uuid: str = UUID) -> dict[str, Any]:
    return {"migration": [[uuid, before, after]]}


def test_a_stream_leaves_before_it_arrives() -> None:
    source = host({}, moved("RUNNING", "STOP"), moved("STOP", "STOP_COPY"), moved("STOP_COPY", "STOP"), {})
    target = host({}, moved("STOP", "RESUMING"), moved("RESUMING", "STOP"), {})
    forth = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 3], [0, 4], [1, 3]]
    assert together([source, target]) == forth
    assert together([target, source])[:6] == [[1, 0], [1, 1], [1, 2], [0, 0], [0, 1], [0, 2]]


def test_a_stream_that_is_refused_has_arrived() -> None:
    source = host(moved("STOP", "STOP_COPY"), moved("STOP_COPY", "RUNNING"))
    refused = {"kind": "refusal", "what": "data_stream ← ...", "where": f"/dev/vfio-ap/{UUID}"}
    target = host(moved("STOP", "RESUMING"), refused, moved("RESUMING", "RUNNING"))
    assert together([source, target]) == [[0, 0], [1, 0], [1, 1], [0, 1], [1, 2]]


def test_other_devices_and_the_way_back() -> None:
    there = [
        moved("STOP", "STOP_COPY"),
        moved("STOP", "RESUMING", FIRST),
        moved("STOP", "RESUMING"),
        moved("RESUMING", "STOP"),
    ]
    back = [moved("STOP", "RESUMING"), moved("RESUMING", "STOP"), moved("STOP", "STOP_COPY")]
    order = together([host(*there), host(*back)])
    assert order == [[0, 0], [1, 0], [1, 1], [1, 2], [0, 1], [0, 2], [0, 3]]


def test_migration_states_are_part_of_a_step() -> None:
    (step,) = only(Migration(UUID, "RUNNING", "STOP"), Store(f"/dev/vfio-ap/{UUID}/migration_state", "STOP"))
    assert step["migration"] == [[UUID, "RUNNING", "STOP"]]


def test_texts_of_hosts_do_not_become_markup() -> None:
    text = page([told("kernel-doc", a_day)], MARKUP)
    assert text.count("<script") == text.count("</script>") == 2
    assert "<!--" not in text
    assert "<b>" not in text
    (embedded,) = text.split('<script type="application/json" id="data">')[1].split("</script>")[:1]
    data = json.loads(embedded)
    assert data["title"] == MARKUP
    assert any(MARKUP in step["what"] for step in data["hosts"][0]["steps"])


def test_refusals_of_other_operations_name_the_file() -> None:
    read, console = (
        Refusal("read", "/sys/bus/ap/x", "", "EIO", "why"),
        Refusal("console", "/ctl/console", "no\n", "EINVAL", "why"),
    )
    assert [step["what"] for step in only(read, console)] == ["read x", "no"]


def migrated(target: str) -> tuple[Shell, Shell]:
    """Migrate a guest, as far as the target lets it; return both hosts."""
    hosts = Shell(Host(load("migration-source"))), Shell(Host(load(target)))
    source, other = hosts
    other.echo("RESUMING", f"{CLIENT}/migration_state")
    source.echo("STOP_COPY", f"{CLIENT}/migration_state")
    with contextlib.suppress(KernelError):
        other.write(f"{CLIENT}/data_stream", source.read(f"{CLIENT}/data_stream"))
    other.echo("RUNNING", f"{CLIENT}/migration_state")
    return hosts


def stories_of(hosts: tuple[Shell, ...]) -> list[Step]:
    return [asked(host.host.name, host.recording(), host.cat("/ctl/status")) for host in hosts]


def test_a_stream_is_judged_queue_by_queue() -> None:
    source, target = stories_of(migrated("target-older-type"))
    assert source["note"] == target["note"] == ""
    (step,) = [step for step in target["steps"] if "verdicts" in step]
    assert step["kind"] == "refusal"
    differs = ["AP type", "0e", "0d"]
    assert [finding[1:] for finding in step["verdicts"]["findings"] if finding[0] == "05.0004"] == [differs]
    assert step["verdicts"]["fitting"] == ["06.0004", "06.0047"]
    assert step["verdicts"]["left"] == 0


def test_a_stream_that_fits() -> None:
    _, target = stories_of(migrated("migration-target"))
    (step,) = [step for step in target["steps"] if "verdicts" in step]
    fitting = ["05.0004", "05.0047", "06.0004", "06.0047"]
    assert step["kind"] == "transfer"
    assert step["verdicts"] == {"findings": [], "fitting": fitting, "left": 0}


def test_what_a_journal_does_not_tell() -> None:
    host = Host(load("default"))
    shell = Shell(host)
    shell.echo("-5", "/sys/bus/ap/apmask")
    host.unplug(6)  # no request
    host.scan()
    shell.echo("-7", "/sys/bus/ap/apmask")
    (story,) = stories_of((shell,))
    assert story["note"].startswith("At record ")
    assert "patch" in story["steps"][0]


def recorded_day() -> list[str]:
    """Return the lines of a journal whose last request has 10 effects."""
    shell = Shell(Host(load("kernel-doc")))
    a_day(shell)
    return shell.recording().splitlines(keepends=True)


def test_a_journal_that_ends_in_the_middle() -> None:
    lines = recorded_day()
    whole = recorded("whole", "".join(lines))
    assert recorded("whole", "".join(lines).removesuffix("\n")) == whole
    without = recorded("x", "".join(lines[:-1]))
    assert without["note"].startswith("Its last record, 28, is not the outcome of a request: the journal was truncated")
    assert without["steps"][:-1] == whole["steps"][:-1]
    assert without["steps"][-1]["kind"] == "none"
    for end in (1, len(lines[-2]) - 2):
        cut = recorded("x", "".join(lines[:-2]) + lines[-2][:end])
        assert cut["note"].startswith("Its last record, 27, is not the outcome of a request: the journal was truncated")
        assert cut["steps"][:-1] == whole["steps"][:-1]
    cut = recorded("x", "".join(lines[:6]) + lines[6][:40])
    assert cut["note"] == "Its last line is incomplete: the journal was truncated."
    assert cut["steps"] == whole["steps"][:3]


def test_a_journal_that_lacks_records() -> None:
    lines = recorded_day()
    found = recorded("x", "".join(lines[:9] + lines[10:]))
    assert found["note"] == (
        "Record 10 follows record 8: the records in between are missing. From there on the matrix is not certain."
    )


def test_titles_may_be_file_names_of_any_bytes() -> None:
    text = page([told("empty", lambda _: None)], os.fsdecode(b"\xff<b>"))
    assert "<title>?&lt;b&gt;</title>" in text


def test_a_guest_and_a_journal_that_has_lost_its_beginning() -> None:
    shell = Shell(Host(load("migration-source")))
    guest = shell.guest(UUID)
    found = asked("guest", guest.recording(), guest.cat("/ctl/status"))
    assert (
        f"it is the journal of guest {UUID}: use that of its host, which has the guest's requests, too" in found["note"]
    )
    assert list(found["first"]["cards"]) == ["05", "06"]
    shell.echo("-7", "/sys/bus/ap/apmask")
    shell.echo("-8", "/sys/bus/ap/apmask")
    head, _, *rest = shell.recording().splitlines(keepends=True)
    found = asked("host", head + "".join(rest), shell.cat("/ctl/status"))
    assert "the host had dropped the first 1 records" in found["note"]
    assert found["first"]["masks"]["apmask"] == "00-04 09-ff"
