"""Where a story comes from: a mounted host, or the text of a journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from apfs.errors import KernelError
from apfs.journal.history import History
from apfs.kernel.profile import Profile
from apfs.report.moments import Moment, moments
from apfs.report.picture import picture
from apfs.report.story import story
from apfs.scenario.model import ScenarioError
from apfs.scenario.reader import gallery, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apfs.report.story import Step

_ONLY_NOW = "What the host was like before is not known: the matrix shows at every moment what it is like at the end."


def mounted(title: str, status: str, journal: str) -> Step:
    """Return the story of a mounted host from the texts of its `ctl/status` and `ctl/journal`."""
    document = json.loads(status)
    history = History.parse(journal)
    end = picture(document)
    found = _replayed(document["scenario"], history)
    facts = _facts(document)
    if found and found[-1].picture == end:
        return story(title, history.entries, found, facts)
    return story(title, history.entries, [Moment(0, end)], facts, _ONLY_NOW)


def _replayed(scenario: str, history: History) -> list[Moment]:
    """Return the moments of a host from the gallery; none if it cannot be replayed."""
    if scenario not in gallery() or (history.entries and history.entries[0][0] != 1):
        return []
    try:
        return list(moments(load(scenario), history.entries))
    except (KernelError, ScenarioError):
        return []


def _facts(document: Mapping[str, Any]) -> dict[str, str]:
    kernel = document["kernel"]
    migration = document["driver"]
    return {
        "scenario": document["scenario"],
        "kernel": f"Linux {Profile.of(kernel['version'], kernel['changes'])}",
        "migration": "not offered" if migration == "none" else migration,
        "apfs": document["apfs"],
    }
