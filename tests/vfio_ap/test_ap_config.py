"""The file that holds a whole matrix in one line: its grammar, and what a write does in which order."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apfs.errors import KernelError
from apfs.journal.records import QueuesReset
from tests.hosts import BARE, M1, M2, MATRIX, RESERVED, Bench, built, config_text, mask_text, product, refused

Matrix = tuple[list[int], list[int], list[int]]
EVERYTHING = config_text((5, 6), (4,), (0xAB,))
HEX = "0123456789abcdefABCDEF"


def path(uuid: str = M1) -> str:
    return f"{MATRIX}/{uuid}/ap_config"


# -- reading ----------------------------------------------------------------------------------------------------------


def test_it_shows_what_is_assigned_and_not_what_the_guest_gets() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    assert bench.cat(path()) == ",".join(["0x" + "0" * 64] * 3) + "\n"
    bench.assign(M1, (0, 3, 255), (1,), (254,))
    text = bench.cat(path())
    assert text == "0x9" + "0" * 62 + "1,0x4" + "0" * 63 + ",0x" + "0" * 63 + "2\n"
    assert len(text) == 201
    assert bench.guest_matrix(M1) == []


# -- grammar ----------------------------------------------------------------------------------------------------------

FIVE_SIX, FOUR = [5, 6], [4]
ACCEPTED: dict[str, Matrix] = {
    "0x06,0x08,0x0\n": (FIVE_SIX, FOUR, []),
    "06,08,\n": (FIVE_SIX, FOUR, []),
    "06,08,": (FIVE_SIX, FOUR, []),
    "0x06,0x08\n": (FIVE_SIX, FOUR, []),
    "x06,x08,x\n": (FIVE_SIX, FOUR, []),
    ",\n": ([], [], []),
    ",,": ([], [], []),
    "\n\n": ([], [], []),
    "\n,": ([], [], []),
    "0x,0x,0x": ([], [], []),
    "0x06\n0x08\n0x0\n": (FIVE_SIX, FOUR, []),
    "0x06,0x08,0x0,garbage\n": (FIVE_SIX, FOUR, []),
    "0x06,0x08,0x0\n more garbage, of any sort": (FIVE_SIX, FOUR, []),
    "0x06,0x08,,,,,,,": (FIVE_SIX, FOUR, []),
    EVERYTHING: ([5, 6], [4], [0xAB]),
    EVERYTHING.rstrip("\n"): ([5, 6], [4], [0xAB]),
    EVERYTHING + "garbage": ([5, 6], [4], [0xAB]),
    "0x06,0x08,0x0\0garbage": (FIVE_SIX, FOUR, []),
    "06,\n": (FIVE_SIX, [], []),
    "F,f,0xfF": ([0, 1, 2, 3], [0, 1, 2, 3], list(range(8))),
    "8,4,2": ([0], [1], [2]),
    "0,0,0": ([], [], []),
    "00,0x00,x00": ([], [], []),
    f"0x{'f' * 64},0x0,0x0": (list(range(256)), [], []),
}
REJECTED = (
    "x06,x08",
    "0x06\n",
    "0x06",
    "\n",
    ",",
    "\0,,",
    "0X06,0x08,0x0\n",
    "X06,08,0\n",
    " 0x06,0x08,0x0\n",
    "0x06, 0x08,0x0\n",
    "0x06 ,0x08,0x0\n",
    "0x06,0x08,0x0 \n",
    "+5,+4,\n",
    "-5,+4,\n",
    "0x06,0x08,0x0\r\n",
    "0x06\r\n0x08\r\n0x0\r\n",
    "0x06;0x08;0x0\n",
    "0x06\t0x08\t0x0\n",
    "0x06,0x08\0,0x0\n",
    "0x0g,,",
    "00x06,,",
    "xx06,,",
    "0xx06,,",
    "0x0x06,,",
    "06x,,",
    "\u0665,,",
    f"0x{'0' * 65},,",
    f"{'0' * 65},,",
    f",{'0' * 65},",
    f",,{'0' * 65}",
    f",0x{'0' * 65},",
)


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepted(text: str) -> None:
    bench = Bench(BARE)
    bench.create(M1)
    bench.assign(M1, (9,), (9,), (9,))
    assert bench.write(path(), text) == len(text)
    assert bench.cat(path()) == config_text(*ACCEPTED[text])


@pytest.mark.parametrize("text", REJECTED)
def test_rejected(text: str) -> None:
    bench = built()
    before = bench.dump()
    with refused("EINVAL"):
        bench.write(path(), text)
    assert bench.dump() == before
    assert bench.log() == []


@pytest.mark.parametrize("behind", [1, 3000, 4000, 5000])
def test_what_stands_behind_201_bytes_does_not_matter(behind: int) -> None:
    bench = Bench(BARE)
    bench.create(M1)
    line = EVERYTHING + "\x01" * behind
    assert bench.write(path(), line) == min(len(line), 4096)
    assert bench.cat(path()) == EVERYTHING


def test_the_cut_can_fall_into_the_third_mask() -> None:
    bench = Bench(BARE)
    bench.create(M1)
    before = bench.cat(path())
    with refused("EINVAL"):  # one digit too many in the second mask, far before the cut
        bench.write(path(), f"0x{'0' * 64},0x{'0' * 65},0x0")
    assert bench.cat(path()) == before
    # Two masks of 66 and the comma behind each are 134 bytes, so that 67 remain for the third: 66 digits are too many,
    third = f"{'0' * 63}1"
    with refused("EINVAL"):
        bench.write(path(), f"0x{'0' * 64},0x{'0' * 64},{third}000")
    # a comma or the end within them is fine, and so is anything behind the cut.
    assert bench.write(path(), f"0x{'0' * 64},0x{'0' * 64},{third},00" + "zzz") == 204
    assert bench.cat(path()) == config_text((), (), (255,))


def naive(text: str) -> Matrix | None:
    """Return what a write means, None if it is refused: the rules one after the other, character by character."""
    text = text.partition("\0")[0][:201]
    pieces = [""]
    for character in text:
        if character in ",\n":
            pieces.append("")
        else:
            pieces[-1] += character
    if len(pieces) < 3:
        return None
    result = []
    for piece in pieces[:3]:
        digits = piece
        for prefix in ("0x", "x"):
            if piece.startswith(prefix):
                digits = piece[len(prefix) :]
                break
        if len(digits) > 64 or any(digit not in HEX for digit in digits):
            return None
        numbers = []
        for position, digit in enumerate(digits):
            value = int(digit, 16)
            numbers += [4 * position + bit for bit in range(4) if value & (8 >> bit)]
        result.append(numbers)
    return (result[0], result[1], result[2])


def test_the_naive_parser_agrees_with_the_tables() -> None:
    assert {text: naive(text.encode().decode("latin-1")) for text in ACCEPTED} == ACCEPTED
    assert [text for text in REJECTED if naive(text.encode().decode("latin-1"))] == []


PIECES = st.one_of(
    st.text(HEX, max_size=8),
    st.text(HEX, min_size=60, max_size=66),
    st.sampled_from(["0x", "x", "0X", "0", "", " ", "+", "-", "g", "\0", "0x0", "\r"]),
)
LINES = st.lists(
    st.one_of(PIECES, st.sampled_from([",", "\n"]), st.builds("0x{}".format, st.text(HEX, max_size=64))), max_size=9
).map("".join)
PLAUSIBLE = st.builds(
    lambda prefixes, digits, separators: "".join(
        prefix + piece + separator for prefix, piece, separator in zip(prefixes, digits, separators, strict=True)
    ),
    st.lists(st.sampled_from(["0x", "x", ""]), min_size=3, max_size=3),
    st.lists(st.text(HEX, max_size=65), min_size=3, max_size=3),
    st.lists(st.sampled_from([",", "\n", ",", ""]), min_size=3, max_size=3),
)


@pytest.fixture(scope="module")
def bare() -> Bench:
    bench = Bench(BARE)
    bench.create(M1)
    return bench


@given(text=LINES | PLAUSIBLE)
@example(text="")
@example(text="0" * 64 + "," + "0" * 64 + "," + "0" * 70)
@example(text="0" * 64 + ",0x" + "0" * 64 + ",0x" + "0" * 70)
@example(text="0x" + "0" * 64 + ",0x" + "0" * 64 + ",0x" + "0" * 64 + "0")
def test_against_a_naive_parser(bare: Bench, text: str) -> None:
    bare.write(path(), ",,")
    expected = naive(text) if text else ([], [], [])
    try:
        assert bare.write(path(), text) == len(text)
    except KernelError as error:
        assert (error.name, expected) == ("EINVAL", None)  # noqa: PT017 -- which errno is the point
        expected = ([], [], [])
    assert expected is not None
    assert bare.cat(path()) == config_text(*expected)


MASKS = st.one_of(st.sets(st.integers(0, 255), max_size=5), st.sets(st.integers(0, 255)))


@given(adapters=MASKS, domains=MASKS, control=MASKS)
def test_what_is_written_is_read(bare: Bench, adapters: set[int], domains: set[int], control: set[int]) -> None:
    line = config_text(adapters, domains, control)
    assert bare.write(path(), line) == 201
    assert bare.cat(path()) == line
    assert bare.write(path(), bare.cat(path())) == 201
    assert bare.cat(path()) == line
    assert bare.lines(M1, "control_domains") == [f"{domain:04x}" for domain in sorted(control)]


# -- what a write does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nonsense", "EINVAL"),
        (config_text((7,), (4,)), "EADDRNOTAVAIL"),
        (config_text((5, 6), (4, 0x47)), "EADDRINUSE"),
        (config_text((64,)), "ENODEV"),
        (config_text((5, 64)), "ENODEV"),
        (config_text((64,), (4,)), "EADDRNOTAVAIL"),
    ],
)
@pytest.mark.parametrize("guest", [0, 1])
def test_a_refusal_changes_nothing(line: str, expected: str, guest: int) -> None:
    bench = built()
    bench.create(M2)
    bench.assign(M2, (5, 6), (0x47,))
    bench.run_guest(M1, guest)
    bench.mark()
    before = bench.dump()
    with refused(expected):
        bench.write(path(), line)
    assert bench.dump() == before
    assert bench.pushes() == []
    assert bench.resets() == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_numbers_above_the_limits(axis: int) -> None:
    bench = Bench('[qci]\nmax_adapter = 63\nmax_domain = 84\n[masks]\napmask = "0x0"\n')
    bench.create(M1)
    limit = (63, 84, 84)[axis]
    numbers: list[tuple[int, ...]] = [(), (), ()]
    for number in (limit + 1, 255):
        numbers[axis] = (1, number)
        with refused("ENODEV"):
            bench.write(path(), config_text(*numbers))
    numbers[axis] = (1, limit)
    bench.write(path(), config_text(*numbers))
    assert bench.cat(path()) == config_text(*numbers)


def test_all_three_masks_are_replaced_at_once() -> None:
    bench = built()
    bench.write(path(), config_text((6,), (0x47, 0xFF), (1,)))
    assert bench.matrix(M1) == bench.guest_matrix(M1) == product((6,), (0x47, 0xFF))
    assert bench.lines(M1, "control_domains") == ["0001"]
    assert bench.guest_control_domains(M1) == []


def test_the_present_value_is_checked_again() -> None:
    bench = Bench(RESERVED)
    bench.give("05.0004")
    bench.create(M1)
    bench.assign(M1, (5,), (4,))
    line = bench.cat(path())
    assert bench.write(path(), line) == 201
    bench.unbind("05.0004")
    with refused("EADDRNOTAVAIL"):
        bench.write(path(), line)
    assert bench.cat(path()) == line


def test_moving_queues_from_one_device_to_another() -> None:
    bench = built()
    bench.create(M2)
    line = bench.cat(path())
    with refused("EADDRINUSE"):
        bench.write(path(M2), line)
    bench.write(path(), ",,")
    bench.write(path(M2), line)
    assert bench.guest_matrix(M2) == product((5, 6), (4, 0xAB))
    assert bench.queue_status("05.0004") == "assigned\n"


def test_only_what_was_removed_is_reset() -> None:
    bench = built()
    bench.run_guest(M1)
    bench.mark()
    bench.write(path(), config_text((5,), (4, 0xAB), ()))
    assert [record.count for record in bench.records(QueuesReset)] == [2]
    bench.mark()
    bench.write(path(), config_text((5, 6), (4, 0xAB), (4,)))
    assert bench.resets() == []
    assert bench.pushes() == [(mask_text((5, 6)), mask_text((4, 0xAB)), mask_text((4,)))]
