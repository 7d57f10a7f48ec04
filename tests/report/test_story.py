"""Stories: which records belong together, what changed, and in which order two hosts did it."""

from __future__ import annotations

import json
from typing import Any

from apfs import Host, Shell, load
from apfs.ctl.status import document
from apfs.journal.records import Migration, Refusal, Store, Uevent
from apfs.report.moments import Moment
from apfs.report.page import page
from apfs.report.picture import picture
from apfs.report.story import SHOWN, story, together
from tests.report.stories import FIRST, MARKUP, MDEVS, SECOND, a_day, told
from tests.report.test_picture import patched

UUID = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"


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
    moment = Moment(0, picture(document(Host(load("empty")))))
    (first, second) = story("x", [(4, Store("/sys/a/b", "1\n")), (5, event)], [moment], {})["steps"]
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


def test_65536_queues_that_move_are_a_small_page() -> None:
    def all_of_them(shell: Shell) -> None:
        for text in ("0x0", "-0", f"0x{'f' * 64}") * 2:
            shell.echo(text, "/sys/bus/ap/apmask")

    told_of = told("largest", all_of_them)
    first = told_of["steps"][0]
    assert len(first["effects"]) == SHOWN
    assert first["left"]["uevent"] == first["last"] - first["first"] - SHOWN
    assert len(first["patch"]["cards"]) == 256
    assert len(told_of["cards"]) == 2
    assert len(page([told_of], "largest")) < 250_000


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
    entries = [(1, Migration(UUID, "RUNNING", "STOP")), (2, Store(f"/dev/vfio-ap/{UUID}/migration_state", "STOP"))]
    (step,) = story("x", entries, [Moment(0, picture(document(Host(load("empty")))))], {})["steps"]
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
    entries = [
        (1, Refusal("read", "/sys/bus/ap/x", "", "EIO", "why")),
        (2, Refusal("console", "/ctl/console", "no\n", "EINVAL", "w")),
    ]
    steps = story("x", entries, [Moment(0, picture(document(Host(load("empty")))))], {})["steps"]
    assert [step["what"] for step in steps] == ["read x", "no"]
