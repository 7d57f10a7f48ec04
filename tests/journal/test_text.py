"""Records as text: the words that they may use, and numbers as people read them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.ap.mask import Mask
from apfs.journal.log import CAPACITY, CONTENT
from apfs.journal.records import KINDS, GuestUpdate, Record, Uevent
from apfs.journal.text import from_line, head_of_line, summary, to_line, to_wire

DOCUMENTATION = Path(__file__).parents[2] / "docs/console.md"


def vocabularies() -> list[tuple[type[Record], str, tuple[str, ...]]]:
    """Return the fields that have a vocabulary, with their words."""
    return [
        (kind, name, get_args(hint))
        for kind in KINDS.values()
        for name, hint in get_type_hints(kind).items()
        if get_origin(hint) is Literal
    ]


def test_the_fields_that_have_a_vocabulary() -> None:
    assert {(kind.kind, name) for kind, name, _ in vocabularies()} == {
        *(("refusal", "operation"), ("uevent", "action"), ("log", "level"), ("interrupt", "irq")),
        *(("migration", "before"), ("migration", "after"), ("transfer", "direction")),
    }


@pytest.mark.parametrize(("kind", "name", "words"), vocabularies())
def test_every_word_is_documented_and_no_other_is_read(kind: type[Record], name: str, words: tuple[str, ...]) -> None:
    (row,) = (line for line in DOCUMENTATION.read_text().splitlines() if line.startswith(f"| `{kind.kind}` |"))
    assert [word for word in words if f"`{word}`" not in row] == []
    fields: dict[str, object] = {
        field.name: {"Keys": (), "int": 0}.get(str(field.type), "")
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING
    }
    fields |= {other: known[0] for owner, other, known in vocabularies() if owner is kind}
    for word in words:
        record = kind(**fields | {name: word})
        assert from_line(to_line(1, record)) == (1, record)
    line = to_line(1, kind(**fields | {name: "other"}))
    with pytest.raises(ValueError, match="not a record of a journal of this apfs"):
        from_line(line)
    assert head_of_line(line) == (1, kind.kind)


@given(st.frozensets(st.integers(0, 255)).map(Mask.from_numbers))
def test_numbers_of_a_mask_read_as_elsewhere(mask: Mask) -> None:
    update = GuestUpdate("it", mask.hex256(), mask.hex256(), mask.hex256())
    two, four = mask.ranges(2) or "none", mask.ranges(4) or "none"
    assert summary(update) == (f"it adapters: {two}, domains: {four}, control domains: {four}", "")


def test_the_capacity_is_documented() -> None:
    assert f"The journal holds {CAPACITY:,} records." in DOCUMENTATION.read_text()
    assert f"it holds {CONTENT:,} hex digits" in DOCUMENTATION.read_text()


def test_an_event_on_the_wire() -> None:
    event = Uevent("change", "/devices/ap", "ap", (("APMASK", "0xff\n"), ("KEY", "value")))
    assert to_wire(7, event) == (
        "change@/devices/ap\nACTION=change\nDEVPATH=/devices/ap\nSUBSYSTEM=ap\nAPMASK=0xff\nKEY=value\nSEQNUM=7\n\n"
    )
