"""Sources of a story: the journal of a host, and its status if the host still exists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from apfs.journal.history import History
from apfs.kernel.profile import Profile
from apfs.replay.replay import ReplayError, gap, open_end
from apfs.report.moments import Moment, moments
from apfs.report.picture import picture
from apfs.report.story import story

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from apfs.report.story import Story


def recorded(title: str, journal: str) -> Story:
    """Return the story of a host from what `apfs journal --json` prints, as far as that goes.

    `ValueError` for another text, `ReplayError` if it lacks its beginning, `ScenarioError`.
    """
    history = History.parse(journal)
    found = moments(history)
    assert history.header is not None  # noqa: S101 -- else there are no moments
    missing, end = gap(history), open_end(history)
    note = f"{_sentence(missing)} From there on the matrix is not certain." if missing else ""
    result = story(title, history, found, _facts(history.header.as_dict()), note)
    if end:
        result["note"] = f"{result['note']} {_sentence(end)}".lstrip()
    return result


def _sentence(reason: str) -> str:
    return f"{reason[:1].upper()}{reason[1:]}."


def asked(title: str, journal: str, status: str) -> Story:
    """Return the story of a host or guest that is there, from its journal and, in case of need, its `ctl/status`."""
    try:
        return recorded(title, journal)
    except ReplayError as error:
        document = json.loads(status)
        note = f"The matrix shows at every moment what it is like at the end. What it was before is not known: {error}."
        return story(title, History.parse(journal), _only(document), _facts(document), note)


def _only(document: Mapping[str, Any]) -> Iterator[Moment]:
    yield Moment(0, picture(document))


def _facts(known: Mapping[str, Any]) -> dict[str, str]:
    """Return what is known of a host by its status, or by the header of its journal."""
    kernel = known["kernel"]
    return {
        "scenario": known["scenario"] if "cards" in known else known["name"],
        "kernel": f"Linux {Profile.of(kernel['version'], kernel['changes'])}",
        "migration": "not offered" if known["driver"] == "none" else known["driver"],
        "apfs": known["apfs"],
    }
