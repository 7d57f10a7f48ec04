"""Number grammars, each by a table and against a reader that goes character by character."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.errors import KernelError
from apfs.kernel.kstrtox import kstrtobool, kstrtoul, scan_d, scan_i
from tests.examples import times

if TYPE_CHECKING:
    from collections.abc import Callable

Outcome = int | str  # a value, or the name of an errno

DIGITS = "0123456789abcdef"
SPACE = " \t\n\v\f\r\xa0"


def outcome(parse: Callable[[str], int], text: str) -> Outcome:
    try:
        return parse(text)
    except KernelError as error:
        return error.name


# -- the naive readers -------------------------------------------------------------------------------------------------


def run_of_digits(text: str, base: int) -> tuple[int, int]:
    """Return the value of the digits that a text starts with, and how many there are."""
    value = count = 0
    for char in text:
        digit = DIGITS.find(char.lower()) if char.isascii() else -1
        if not 0 <= digit < base:
            break
        value, count = value * base + digit, count + 1
    return value, count


def base_of(text: str) -> tuple[int, int]:
    """Return the base that a prefix chooses, and how long the prefix is."""
    if text[:1] != "0":
        return 10, 0
    if text[1:2] in ("x", "X") and run_of_digits(text[2:], 16)[1]:
        return 16, 2
    return 8, 0


def naive_kstrtoul(text: str) -> Outcome:
    rest = text[1:] if text[:1] == "+" else text
    base, prefix = base_of(rest)
    value, count = run_of_digits(rest[prefix:], base)
    if not count:
        return "EINVAL"
    if value > 0xFFFF_FFFF_FFFF_FFFF:
        return "ERANGE"
    return value if rest[prefix + count :] in ("", "\n") else "EINVAL"


def naive_scan(text: str, base: int | None) -> Outcome:
    at = 0
    while at < len(text) and text[at] in SPACE:
        at += 1
    negative = text[at : at + 1] == "-"
    at += negative
    if not (text[at : at + 1].isascii() and text[at : at + 1].isdigit()):
        return "EINVAL"
    prefix = 0
    if base is None:
        base, prefix = base_of(text[at:])
    value = run_of_digits(text[at + prefix :], base)[0]
    value = min(value, 2**64 - 1)
    value = (-value if negative else value) & 0xFFFF_FFFF
    return value - (1 << 32 if value >> 31 else 0)


def naive_bool(text: str) -> Outcome:
    first = text[:1].lower()
    if first == "o":
        first += text[1:2].lower()
    if first in ("1", "y", "t", "on", "e"):
        return True
    return False if first in ("0", "n", "f", "of", "d") else "EINVAL"


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("5", 5),
        ("5\n", 5),
        ("+5\n", 5),
        ("0x1f", 31),
        ("0X1F", 31),
        ("+0x1f\n", 31),
        ("017", 15),
        ("00", 0),
        ("0x00000000000000000000000000000001", 1),
        (str(2**64 - 1), 2**64 - 1),
        (hex(2**64 - 1), 2**64 - 1),
        (str(2**64), "ERANGE"),
        (f"{2**64}abc", "ERANGE"),
        (hex(2**64), "ERANGE"),
        (f"0{2**64:o}", "ERANGE"),
        ("", "EINVAL"),
        ("\n", "EINVAL"),
        ("+", "EINVAL"),
        ("-5", "EINVAL"),
        ("+-5", "EINVAL"),
        ("++5", "EINVAL"),
        (" 5", "EINVAL"),
        ("5 ", "EINVAL"),
        ("5\n\n", "EINVAL"),
        ("5\r\n", "EINVAL"),
        ("5x", "EINVAL"),
        ("08", "EINVAL"),
        ("0x", "EINVAL"),
        ("0xg", "EINVAL"),
        ("x5", "EINVAL"),
        ("1f", "EINVAL"),
        ("1_0", "EINVAL"),
        ("0b1", "EINVAL"),
        ("0o7", "EINVAL"),
        ("\u0665", "EINVAL"),
        ("\xb2", "EINVAL"),
    ],
)
def test_kstrtoul(text: str, expected: Outcome) -> None:
    assert outcome(kstrtoul, text) == expected
    assert naive_kstrtoul(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30),
        ("30\n", 30),
        ("30abc", 30),
        ("30 40", 30),
        ("  30", 30),
        ("\t\n\v\f\r\xa030", 30),
        ("-1", -1),
        ("-0", 0),
        ("0x10", 0),
        ("010", 10),
        ("08", 8),
        (str(2**31 - 1), 2**31 - 1),
        (str(2**31), -(2**31)),
        (str(2**32), 0),
        (str(2**32 + 7), 7),
        (str(2**64 - 1), -1),
        (str(2**64), -1),
        (str(2**64 + 2**32 + 7), -1),
        (str(-(2**64) + 1), 1),
        (str(-(2**64)), 1),
        (str(-(2**80)), 1),
        ("", "EINVAL"),
        ("\n", "EINVAL"),
        ("   ", "EINVAL"),
        ("+30", "EINVAL"),
        ("- 30", "EINVAL"),
        ("--30", "EINVAL"),
        ("abc", "EINVAL"),
        ("x30", "EINVAL"),
        ("\u0663", "EINVAL"),
        ("\xb3", "EINVAL"),
        ("\x1c30", "EINVAL"),
        ("\x8530", "EINVAL"),
    ],
)
def test_scan_d(text: str, expected: Outcome) -> None:
    assert outcome(scan_d, text) == expected
    assert naive_scan(text, 10) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30),
        ("30abc", 30),
        (" 30", 30),
        ("0x10", 16),
        ("0X1F\n", 31),
        ("-0x10", -16),
        ("010", 8),
        ("-010", -8),
        ("08", 0),
        ("0", 0),
        ("0x", 0),
        ("0xg", 0),
        ("0x29 and more", 41),
        ("1f", 1),
        (hex(2**32 + 5), 5),
        (str(2**64 - 1), -1),
        ("", "EINVAL"),
        ("+5", "EINVAL"),
        ("- 5", "EINVAL"),
        ("x10", "EINVAL"),
        ("a", "EINVAL"),
    ],
)
def test_scan_i(text: str, expected: Outcome) -> None:
    assert outcome(scan_i, text) == expected
    assert naive_scan(text, None) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("1", "1\n", "y", "Y", "yes", "t", "T", "true", "on", "ON", "oN", "1a", "10", "e")),
        *((text, False) for text in ("0", "0\n", "n", "N", "no", "f", "F", "off", "OFF", "of", "0x1", "01", "d", "D")),
        *((text, "EINVAL") for text in ("", "\n", " 1", "2", "o", "o\n", "ox", "-1", "+1", "a", "\u0131", "\xb9")),
    ],
)
def test_kstrtobool(text: str, expected: Outcome) -> None:
    assert outcome(kstrtobool, text) == expected
    assert naive_bool(text) == expected


# -- random texts ------------------------------------------------------------------------------------------------------

NOISE = st.text(alphabet="+-0123456789abfxXoOnNtTyYeEdD \t\n\v\x1c\x85\xa0\xb2,_.\u0661", max_size=12)
NUMBER = st.builds(
    lambda before, sign, form, value, after: before + sign + form.format(value) + after,
    st.sampled_from(("", " ", "\t ", "\n")),
    st.sampled_from(("", "+", "-")),
    st.sampled_from(("{:d}", "{:#x}", "0X{:X}", "0{:o}", "{:x}", "0{:d}")),
    st.one_of(st.integers(0, 300), st.integers(0, 2**66), st.sampled_from((2**31, 2**32, 2**63, 2**64))),
    st.sampled_from(("", "\n", "\n\n", " ", "x", "8")),
)
TEXTS = st.one_of(NOISE, NUMBER)


@times(5)
@given(TEXTS)
def test_random_texts_read_as_the_naive_readers_do(text: str) -> None:
    assert outcome(kstrtoul, text) == naive_kstrtoul(text)
    assert outcome(scan_d, text) == naive_scan(text, 10)
    assert outcome(scan_i, text) == naive_scan(text, None)
    assert outcome(kstrtobool, text) == naive_bool(text)


@given(st.integers(0, 2**64 - 1))
def test_every_64_bit_number_can_be_written_in_each_base(value: int) -> None:
    for text in (f"{value}", f"+{value}\n", f"{value:#x}", f"0X{value:X}\n", f"0{value:o}", f"{value:#018x}"):
        assert kstrtoul(text) == value


def test_refusals_tell_why_without_repeating_a_whole_page() -> None:
    with pytest.raises(KernelError) as refusal:
        kstrtoul("z" * 4096)
    assert refusal.value.errno == errno.EINVAL
    assert len(refusal.value.why) < 200
