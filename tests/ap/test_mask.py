"""Masks against Python's sets, and their text forms against a reader that goes character by character."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.ap.mask import ALL, NONE, Mask, ap_hex2bitmap, ap_parse_bitmap_str
from apfs.errors import KernelError
from tests.examples import times

Outcome = set[int] | str  # members, or the name of an errno

NUMBERS = st.integers(0, 255)
SETS = st.frozensets(NUMBERS)
EVERYTHING = frozenset(range(256))


def mask(*numbers: int) -> Mask:
    return Mask.from_numbers(numbers)


# -- the algebra -------------------------------------------------------------------------------------------------------


@given(SETS, SETS, NUMBERS)
def test_algebra(one: frozenset[int], two: frozenset[int], number: int) -> None:
    a, b = Mask.from_numbers(one), Mask.from_numbers(two)
    assert set(a & b) == one & two
    assert set(a | b) == one | two
    assert set(a - b) == one - two
    assert set(~a) == EVERYTHING - one
    assert a.issuperset(b) == one.issuperset(two)
    assert (a == b) == (one == two)
    assert (hash(a) == hash(Mask.from_numbers(sorted(one)))) is True
    assert (number in a) == (number in one)
    assert set(a.with_(number)) == one | {number}
    assert set(a.without(number)) == one - {number}
    assert list(a) == sorted(one)
    assert len(a) == len(one)
    assert bool(a) == bool(one)


@given(SETS, st.integers(-1, 255))
def test_order(members: frozenset[int], number: int) -> None:
    found = Mask.from_numbers(members)
    assert set(found.after(number)) == {member for member in members if member > number}
    assert set(Mask.up_to(number)) == set(range(number + 1))
    if members:
        assert found.lowest() == min(members)


@given(SETS)
def test_text_form(members: frozenset[int]) -> None:
    text = Mask.from_numbers(members).hex256()
    bits = "".join("1" if number in members else "0" for number in range(256))
    assert text == "0x" + "".join(f"{int(bits[at : at + 4], 2):x}" for at in range(0, 256, 4))
    assert set(ap_hex2bitmap(text)) == members
    assert set(ap_hex2bitmap(text + "\n")) == members


@given(SETS, st.sampled_from([2, 4]))
def test_ranges(members: frozenset[int], digits: int) -> None:
    text = Mask.from_numbers(members).ranges(digits)
    runs = [[int(end, 16) for end in run.split("-")] for run in text.split()]
    assert {number for run in runs for number in range(run[0], run[-1] + 1)} == members
    assert all(len(end) == digits for run in text.split() for end in run.split("-"))
    assert all(run[0] < run[-1] for run in runs if len(run) > 1)
    assert all(before[-1] + 1 < after[0] for before, after in itertools.pairwise(runs))  # nothing to merge


@pytest.mark.parametrize(
    ("members", "text"),
    [((), ""), ((0,), "00"), (range(256), "00-ff"), ((*range(32), 64, 254, 255), "00-1f 40 fe-ff")],
)
def test_ranges_as_text(members: tuple[int, ...], text: str) -> None:
    assert Mask.from_numbers(members).ranges(2) == text


def test_nothing_and_everything() -> None:
    assert list(NONE) == []
    assert list(ALL) == list(range(256))
    assert mask() == NONE
    assert Mask.of(0).hex256() == "0x8" + "0" * 63
    assert Mask.of(255).hex256() == "0x" + "0" * 63 + "1"
    assert NONE != 0
    assert repr(Mask.of(1, 7)) == "Mask.of(1, 7)"


def test_what_is_no_mask_cannot_be_built() -> None:
    for number in (-1, 256):
        with pytest.raises(ValueError, match=r"not in 0\.\.255"):
            Mask.of(number)
    for bits in (-1, 1 << 256):
        with pytest.raises(ValueError, match="not a 256-bit value"):
            Mask(bits)
    with pytest.raises(ValueError, match="empty"):
        NONE.lowest()


# -- the naive readers -------------------------------------------------------------------------------------------------

HEX = "0123456789abcdef"


def naive_absolute(text: str) -> Outcome:
    at = 0
    if text[:2] == "0x":
        at = 2
    elif text[:1] == "x":
        at = 1
    members = set()
    number = 0
    while at < len(text) and text[at] in HEX + HEX.upper() and number < 256:
        digit = HEX.index(text[at].lower())
        for weight in (8, 4, 2, 1):
            if digit & weight:
                members.add(number)
            number += 1
        at += 1
    if text[at : at + 1] == "\n":
        at += 1
    return "EINVAL" if at < len(text) else members


def naive_number(text: str, at: int) -> tuple[int, int] | None:
    """Return the number that begins at a position, and where it ends."""
    base, start = 10, at
    if text[at : at + 1] == "0":
        base = 8
        if text[at + 1 : at + 2] in ("x", "X") and text[at + 2 : at + 3] and text[at + 2].lower() in HEX:
            base, start = 16, at + 2
    end, value = start, 0
    while end < len(text) and text[end].lower() in HEX[:base]:
        value = value * base + HEX.index(text[end].lower())
        end += 1
    return None if end == start else (value, end)


def naive_relative(text: str, current: set[int]) -> Outcome:
    members, at = set(current), 0
    while at < len(text):
        sign = text[at]
        if sign not in "+-":
            return "EINVAL"
        found = naive_number(text, at + 1)
        if found is None:
            return "EINVAL"
        first, at = found
        last = first
        if text[at : at + 1] == "-":
            found = naive_number(text, at + 1)
            if found is None:
                return "EINVAL"
            last, at = found
        if not first <= last <= 255:
            return "EINVAL"
        row = set(range(first, last + 1))
        members = members | row if sign == "+" else members - row
        while text[at : at + 1] in (",", "\n"):
            at += 1
    return members


def naive(text: str, current: set[int]) -> Outcome:
    return naive_relative(text, current) if text[:1] in ("+", "-") else naive_absolute(text)


def parsed(text: str, current: Mask) -> Outcome:
    try:
        return set(ap_parse_bitmap_str(text, current))
    except KernelError as error:
        return error.name


# -- tables ------------------------------------------------------------------------------------------------------------

FULL = set(EVERYTHING)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # What the reference says about writing to a mask of all ones.
        ("-0x29", FULL - {0x29}),
        ("-5,-6", FULL - {5, 6}),
        ("-5-6", FULL - {5, 6}),
        ("+5,-", "EINVAL"),
        ("+256", "EINVAL"),
        ("5", {1, 3}),
        ("0xffff", set(range(16))),
        # Absolute values.
        ("0x4", {1}),
        ("0x4\n", {1}),
        ("x4", {1}),
        ("4", {1}),
        ("0xAbC", {0, 2, 4, 6, 7, 8, 9}),
        ("", set()),
        ("\n", set()),
        ("0x", set()),
        ("0x\n", set()),
        ("x", set()),
        ("0", set()),
        ("0x" + "0" * 63 + "1", {255}),
        ("0x" + "f" * 64 + "\n", FULL),
        ("f" * 64, FULL),
        ("0x" + "f" * 65, "EINVAL"),
        ("0x" + "0" * 65, "EINVAL"),
        ("0X4", "EINVAL"),
        ("X4", "EINVAL"),
        ("xx4", "EINVAL"),
        ("0xx4", "EINVAL"),
        (" 0x4", "EINVAL"),
        ("0x4 ", "EINVAL"),
        ("0x4\n\n", "EINVAL"),
        ("0x4,", "EINVAL"),
        ("0x4g", "EINVAL"),
        ("0-15", "EINVAL"),
        ("\xb2", "EINVAL"),
        # Changes.
        ("-0", FULL - {0}),
        ("-0-255", set()),
        ("-0-255+7", {7}),
        ("-0-255,+1+2", {1, 2}),
        ("-0-255,+1-2", {1, 2}),
        ("-0-255,,\n,+0x10-0x1f,-020\n", set(range(17, 32))),
        ("-0x10-0x1f", FULL - set(range(16, 32))),
        ("-010", FULL - {8}),
        ("-0X1F", FULL - {31}),
        ("-5,+5", FULL),
        ("+5,-5", FULL - {5}),
        ("-5\n-6\n", FULL - {5, 6}),
        ("-5,", FULL - {5}),
        ("-1-2-3", FULL - {1, 2, 3}),
        ("-6-5", "EINVAL"),
        ("-5-256", "EINVAL"),
        ("-256", "EINVAL"),
        ("+", "EINVAL"),
        ("-", "EINVAL"),
        ("+\n", "EINVAL"),
        ("++5", "EINVAL"),
        ("+ 5", "EINVAL"),
        ("+5 -6", "EINVAL"),
        ("+5,6", "EINVAL"),
        ("+5,,6", "EINVAL"),
        ("-5--6", "EINVAL"),
        ("-5-", "EINVAL"),
        ("-5-x", "EINVAL"),
        ("-08", "EINVAL"),
        ("-0x", "EINVAL"),
        ("-5;", "EINVAL"),
        ("-x5", "EINVAL"),
        ("-\u0665", "EINVAL"),
    ],
)
def test_written_to_all_ones(text: str, expected: Outcome) -> None:
    assert parsed(text, ALL) == expected
    assert naive(text, FULL) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("+0-3", {0, 1, 2, 3, 9}), ("-9", set()), ("+9", {9}), ("-8", {9}), ("0", set()), ("+0-3,-9,+9", {0, 1, 2, 3, 9})],
)
def test_changes_start_from_the_present_value(text: str, expected: Outcome) -> None:
    assert parsed(text, Mask.of(9)) == expected


@pytest.mark.parametrize(("text", "expected"), [("+5", "EINVAL"), ("-5", "EINVAL"), ("5", {1, 3}), ("", set())])
def test_hex2bitmap_knows_no_signs(text: str, expected: Outcome) -> None:
    try:
        found: Outcome = set(ap_hex2bitmap(text))
    except KernelError as error:
        found = error.name
    assert found == expected


# -- random texts ------------------------------------------------------------------------------------------------------

NUMBER = st.builds(
    lambda form, value: form.format(value),
    st.sampled_from(("{:d}", "{:#x}", "0X{:X}", "0{:o}", "0{:d}")),
    st.integers(0, 260),
)
TERM = st.builds(
    lambda sign, first, dash, last, after: sign + first + dash + last + after,
    st.sampled_from(("+", "-", "+", "-", "")),
    NUMBER,
    st.sampled_from(("", "-", "-", "--")),
    st.one_of(NUMBER, st.just("")),
    st.sampled_from(("", ",", "\n", ",,\n", " ")),
)
HEX_TEXT = st.builds(
    lambda prefix, digits, after: prefix + digits + after,
    st.sampled_from(("", "0x", "x", "0X", "0xx")),
    st.text(alphabet=HEX + "ABCDEF", max_size=66),
    st.sampled_from(("", "\n", "\n\n", " ", ",")),
)
NOISE = st.text(alphabet="+-0123456789abfxX,\n \u0661", max_size=12)


@times(5)
@given(st.one_of(HEX_TEXT, NOISE, st.lists(TERM, min_size=1, max_size=4).map("".join)), SETS)
def test_random_texts_read_as_the_naive_readers_do(text: str, current: frozenset[int]) -> None:
    before = Mask.from_numbers(current)
    assert parsed(text, before) == naive(text, set(current))
    assert set(before) == current
