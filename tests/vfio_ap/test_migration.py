"""The stream of live migration, revision 2: what it holds, and which streams a target refuses with which words."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.ap.mask import ALL, Mask
from apfs.errors import KernelError
from apfs.journal.log import Journal
from apfs.vfio_ap.migration.revision import MigrationFile
from apfs.vfio_ap.migration.stream import Row
from apfs.vfio_ap.migration.v2 import (
    ResumingFile,
    Target,
    compatible,
    differences,
    judge,
    make_stream,
    stream_size,
)
from tests.calls import calls
from tests.examples import times
from tests.hosts import AP_DRIVER, M1, M2, MATRIX, Bench, config_text, product

from .naive import NaiveHost, NaiveV2
from .streams import (
    APQNS,
    CCA8,
    ENTRIES,
    EP11_7,
    HOST,
    STREAM,
    Entry,
    Event,
    cut,
    deliver,
    events,
    pair,
    patched,
    state,
    stream,
    transfer,
    write,
)

RECORD = 0xFFFF0000FFFF0F0F
"""What of a queue's word is kept in the record of its card."""


@pytest.fixture
def bench() -> Bench:
    return Bench(HOST)


def taken(bench: Bench, size: int = 4096) -> bytes:
    """Take the stream of a guest, and let it run on."""
    state(bench, "STOP_COPY")
    file = transfer(bench)
    data = b""
    while piece := bytes(file.read(0, size)):
        data += piece
    state(bench, "RUNNING")
    return data


# -- what a source sends ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 8, 71, 72, 73, 4096])
def test_the_stream_of_four_queues(bench: Bench, size: int) -> None:
    assert bench.guest_matrix(M1) == product((5, 6), (4, 0x47))
    assert bench.cat(f"/dev/vfio-ap/{M1}/data_size") == "72\n"
    expected = (
        "0000000400000000"
        "928000000e5403070504000000000000"
        "928000000e5403070547000000000000"
        "868000000d5403070604000000000000"
        "868000000d5403070647000000000000"
    )
    assert taken(bench, size).hex() == expected
    assert stream().hex() == expected


@pytest.mark.parametrize(
    ("config", "apqns"),
    [
        (config_text(), []),
        (config_text((5,)), []),
        (config_text((), (4,)), []),
        (config_text((5,), (4,), (4,)), [0x0504]),
        (config_text((6, 5), (0x47,)), [0x0547, 0x0647]),
        (config_text((5, 9), (4, 9)), [0x0504]),
    ],
)
def test_it_follows_the_guest_matrix(bench: Bench, config: str, apqns: list[int]) -> None:
    bench.write(f"{MATRIX}/{M1}/ap_config", config)
    words = dict(zip(APQNS, (CCA8, CCA8, EP11_7, EP11_7), strict=True))
    assert taken(bench) == stream([(words[apqn], apqn) for apqn in apqns])
    assert bench.cat(f"/dev/vfio-ap/{M1}/data_size") == f"{8 + 16 * len(apqns)}\n"


def test_unbound_queues_take_their_adapter_out_of_the_stream(bench: Bench) -> None:
    bench.echo("05.0047", f"{AP_DRIVER}/unbind")
    assert taken(bench) == stream(ENTRIES[2:])


def test_words_come_from_the_card_and_not_from_the_queue(bench: Bench) -> None:
    bench.console("tapq 05.0047 apsc=0 bs=2 nd=1")
    assert taken(bench) == STREAM
    bench.console("scan")
    assert taken(bench) == STREAM


def test_words_of_a_card_are_those_of_its_first_queue() -> None:
    bench = Bench(HOST.replace("[masks]", '[[queue]]\napqn = "05.0004"\ntapq = { slcf = 1, qd = 5 }\n[masks]'))
    word = CCA8 | 1 << 56
    assert taken(bench) == stream([(word - 2, 0x0504), (word - 2, 0x0547), *ENTRIES[2:]])


def test_words_are_reduced_to_the_card_s_record() -> None:
    bench = Bench(HOST.replace("tapq = { apsc = 1 }", "tapq = { apsc = 1, bs = 2, class = 0xc1, ml = 15, qd = 15 }"))
    word = 0x86C100000D540F0F
    assert word & RECORD == word
    assert taken(bench) == stream([*ENTRIES[:2], (word, 0x0604), (word, 0x0647)])


def test_a_card_exchanged_for_another_is_recorded_anew(bench: Bench) -> None:
    bench.console("tapq 6 at=14 crt4k=1", "scan")
    word = EP11_7 | 1 << 61 | 0x01000000
    word = (word & ~(0xFF << 24)) | 0x0E << 24
    assert taken(bench) == stream([*ENTRIES[:2], (word, 0x0604), (word, 0x0647)])


def test_queues_without_a_device_leave_their_places_at_the_end() -> None:
    made = make_stream(4, [Row(5, Mask.of(4), CCA8), Row(6, Mask.of(0x47), EP11_7)])
    assert made == stream([(CCA8, 0x0504), (EP11_7, 0x0647), (0, 0), (0, 0)])
    assert stream_size(65536) == 1_048_584


# -- the twelve streams of the description of the protocol ------------------------------------------------------------

ENODEV, EIO, E2BIG, EFAULT = "ENODEV", "EIO", "E2BIG", "EFAULT"


@dataclass(frozen=True)
class Vector:
    """A stream that is not accepted: its bytes, the sizes of its writes, their results, and the log."""

    digits: str
    results: tuple[int | str, ...]
    log: tuple[Event, ...]
    sizes: tuple[int, ...] = ()

    @property
    def pieces(self) -> list[bytes]:
        data = bytes.fromhex(self.digits)
        return cut(data, *self.sizes) if self.sizes else [data]


_1 = "928000000e5403070504000000000000"
_2 = "928000000e5403070547000000000000"
_3 = "868000000d5403070604000000000000"
_4 = "868000000d5403070647000000000000"
_FIVE = "0000000500000000" + _1 + _2 + _3 + _4 + "868000000d5403070704000000000000"
VECTORS = {
    1: Vector("0000000300000000" + _1 + _2 + _3, (ENODEV,), (("N1", "3", "4"),)),
    2: Vector(_FIVE, (EIO,), (("W4", "88", "72"),)),
    3: Vector(_FIVE, (E2BIG, EIO), (("N1", "5", "4"), ("W4", "88", "72")), (8, 80)),
    4: Vector("0400000000000000" + _1 + _2 + _3 + _4, (E2BIG,), (("N1", "67108864", "4"),)),
    5: Vector("ffffffff00000000" + _1 + _2 + _3 + _4, (ENODEV,), (("N1", "-1", "4"),)),
    6: Vector("0000000400000000" + _1 + _2 + _3 + "868000000d5403070747000000000000", (ENODEV,), (("A1", "07.0047"),)),
    7: Vector(
        "0000000400000000928000000e5403070904000000000000" + _2 + _3 + "868000000d5403070755000000000000",
        (ENODEV,),
        (("A1", "09.0004"), ("A1", "07.0055")),
    ),
    8: Vector(
        "0000000400000000928000000f5403070504000000000000" + _2 + _3 + _4,
        (EFAULT,),
        (("Q0", "05.0004"), ("T1", "0f", "0e")),
    ),
    9: Vector(
        "0000000400000000" + _1 + "128000000e5403070547000000000000" + _3 + _4,
        (EFAULT,),
        (("Q0", "05.0047"), *pair("F1", "absent", "05.0047"), ("T1", "0e", "0e")),
    ),
    10: Vector(
        "0000000400000000924000000e5403070504000000000000" + _2 + _3 + _4,
        (EFAULT,),
        (("Q0", "05.0004"), ("T1", "0e", "0e")),
    ),
    11: Vector(
        "0000000400000000928080000e5403070504000000000000" + _2 + _3 + _4,
        (EFAULT,),
        (("Q0", "05.0004"), ("T1", "0e", "0e"), ("B1", "2", "0", "05.0004")),
    ),
    12: Vector(
        "0000000400000000868000000e5403070504000000000000" + _2 + _3 + _4,
        (EFAULT,),
        (
            ("Q0", "05.0004"),
            *pair("M1", "absent", "05.0004"),
            *pair("M3", "present", "05.0004"),
            ("T1", "0e", "0e"),
        ),
    ),
}


@pytest.mark.parametrize("number", VECTORS)
def test_vectors(bench: Bench, number: int) -> None:
    vector = VECTORS[number]
    state(bench, "RESUMING")
    before = bench.dump()
    bench.mark()
    assert write(bench, *vector.pieces) == list(vector.results)
    assert tuple(events(bench)) == vector.log
    assert bench.dump() == before
    assert bench.cat(f"/dev/vfio-ap/{M1}/migration_state") == "RESUMING\n"
    state(bench, "RUNNING")  # whoever does not mind goes on
    assert bench.guest_matrix(M1) == product((5, 6), (4, 0x47))


def test_the_vectors_are_the_changes_that_they_are_meant_to_be() -> None:
    changes: dict[int, bytes] = {
        1: patched((0, "00000003"))[:56],
        4: patched((0, "04000000")),
        5: patched((0, "ffffffff")),
        6: patched((64, "0747")),
        7: patched((16, "0904"), (64, "0755")),
        8: patched((12, "0f")),
        9: patched((24, "12")),
        10: patched((9, "40")),
        11: patched((10, "80")),
        12: patched((8, "86")),
    }
    for number, data in changes.items():
        assert VECTORS[number].digits == data.hex(), number


# -- accepted, and one might not think so -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([STREAM], id="as it was sent"),
        pytest.param([bytes([byte]) for byte in STREAM], id="byte by byte"),
        pytest.param([patched((12, "0c"), (28, "0c"), (44, "0c"), (60, "0c"))], id="all types older"),
        pytest.param([patched((64, "0604"))], id="an APQN twice, one missing"),
        pytest.param([stream([(CCA8, 0x0504)] * 4)], id="one APQN four times"),
        pytest.param([stream(ENTRIES[::-1])], id="reversed"),
        pytest.param([patched((4, "ffffffff"))], id="padding of the header"),
        pytest.param([patched((18, "ffffffffffff"), (66, "010203040506"))], id="padding of entries"),
        pytest.param([patched((10, "08"))], id="a reserved bit, types equal"),
        pytest.param([patched((10, "3fff"))], id="all reserved bits, types equal"),
        pytest.param([patched((13, "ff"), (14, "ff"), (15, "ff"))], id="domains, limits, depths"),
        pytest.param([STREAM[:71]], id="the last byte missing: never judged"),
        pytest.param([STREAM[:8]], id="only the header"),
        pytest.param([STREAM[:4]], id="only the number"),
        pytest.param([b"\xff\xff\xff"], id="three bytes: not even counted"),
        pytest.param([], id="nothing"),
        pytest.param([b"", STREAM, b""], id="empty writes"),
    ],
)
def test_accepted_nevertheless(bench: Bench, pieces: list[bytes]) -> None:
    before = bench.dump()
    assert deliver(bench, *pieces) == [len(piece) for piece in pieces]
    assert bench.log() == []
    state(bench, "RUNNING")
    assert bench.dump() == before


def test_a_stream_of_nothing_for_a_guest_with_nothing(bench: Bench) -> None:
    bench.write(f"{MATRIX}/{M1}/ap_config", ",,")
    assert deliver(bench, bytes(8)) == [8]
    assert deliver(bench, bytes(4), b"", bytes(4)) == [4, 0, 4]
    assert deliver(bench, bytes(7)) == [7]
    assert bench.log() == []


def test_the_same_host_again_and_again(bench: Bench) -> None:
    for _ in range(3):
        assert deliver(bench, taken(bench)) == [72]


# -- rejected, and one might not think so -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "results", "log"),
    [
        pytest.param(
            [patched((10, "08"), (12, "0d"))],
            [EFAULT],
            [("Q0", "05.0004"), ("T1", "0d", "0e")],
            id="a reserved bit and an older type: nothing wrong in the log",
        ),
        pytest.param([STREAM + b"\0"], [EIO], [("W4", "73", "72")], id="one byte too many"),
        pytest.param([STREAM, b"\0"], [72, EIO], [("W4", "73", "72")], id="one byte too many, later"),
        pytest.param([bytes(8)], [ENODEV], [("N1", "0", "4")], id="an empty stream"),
        pytest.param(
            [b"", bytes(3), b"", b"\5"], [0, 3, 0, E2BIG], [("N1", "5", "4")], id="counted at the fourth byte"
        ),
        pytest.param(
            [patched((12, "0f"), (24, "12"))],
            [EFAULT],
            [("Q0", "05.0004"), ("T1", "0f", "0e")],
            id="only the first incompatible queue is told of",
        ),
        pytest.param(
            [patched((12, "0f"), (64, "0747"), (48, "0605"))],
            [ENODEV],
            [("A1", "06.0005"), ("A1", "07.0047")],
            id="all missing queues are, and first",
        ),
        pytest.param(
            [patched((8, "ff"))],
            [EFAULT],
            [
                ("Q0", "05.0004"),
                *pair("F2", "present", "05.0004"),
                *pair("F3", "present", "05.0004"),
                *pair("M2", "present", "05.0004"),
                *pair("M3", "present", "05.0004"),
                *pair("L1", "present", "05.0004"),
                ("T1", "0e", "0e"),
            ],
            id="everything there is",
        ),
        pytest.param(
            [patched((8, "00"), (10, "c0"))],
            [EFAULT],
            [
                ("Q0", "05.0004"),
                *pair("F1", "absent", "05.0004"),
                *pair("M1", "absent", "05.0004"),
                *pair("X1", "absent", "05.0004"),
                ("T1", "0e", "0e"),
                ("B1", "3", "0", "05.0004"),
            ],
            id="nothing there is",
        ),
        pytest.param(
            [patched((9, "c0"))], [EFAULT], [("Q0", "05.0004"), ("T1", "0e", "0e")], id="other bits of the class"
        ),
        pytest.param([stream([*ENTRIES[:3], (0, 0)])], [ENODEV], [("A1", "00.0000")], id="an empty entry"),
        pytest.param(
            [patched((12, "0f")), b"", b""],
            [EFAULT, EFAULT, EFAULT],
            [("Q0", "05.0004"), ("T1", "0f", "0e")] * 3,
            id="empty writes at the end judge again",
        ),
        pytest.param(
            [patched((0, "00000003"))[:20], STREAM[20:]],
            [ENODEV, ENODEV],
            [("N1", "3", "4"), ("N1", "3", "4")],
            id="every write counts again",
        ),
        pytest.param(
            [patched((64, "0747")), STREAM],
            [ENODEV, EIO],
            [("A1", "07.0047"), ("W4", "144", "72")],
            id="there is no second try",
        ),
    ],
)
def test_rejected_nevertheless(bench: Bench, pieces: list[bytes], results: list[int | str], log: list[Event]) -> None:
    before = bench.dump()
    assert deliver(bench, *pieces) == results
    assert events(bench) == log
    state(bench, "RUNNING")
    assert bench.dump() == before


def test_a_target_that_is_stateless() -> None:
    bench = Bench(HOST.replace('type = "CEX8C"', 'type = "CEX8C"\ntapq = { class = 0x40 }'))
    assert deliver(bench, STREAM) == [EFAULT]
    assert events(bench) == [("Q0", "05.0004"), *pair("K1", "native", "05.0004"), ("T1", "0e", "0e")]


def test_a_target_whose_queues_wait_for_binding() -> None:
    # The bind state is not in the card's record, so that a source that has the same one is refused, too.
    bench = Bench(HOST.replace('type = "CEX8C"', 'type = "CEX8C"\ntapq = { bs = 2 }'))
    assert deliver(bench, STREAM) == [72]
    assert deliver(bench, patched((10, "80"), (26, "80"))) == [EFAULT]
    assert events(bench) == [("Q0", "05.0004"), ("T1", "0e", "0e"), ("B1", "2", "0", "05.0004")]


@pytest.mark.parametrize(
    ("source", "target", "accepted"),
    [
        (CCA8, CCA8, True),
        (CCA8 | 2 << 46, CCA8 | 2 << 46, True),  # equal bind states pass, whatever they are
        (CCA8 | 2 << 46, CCA8, False),
        (CCA8, CCA8 | 1 << 46, False),
        (CCA8, CCA8 | 1 << 24, True),  # the target is newer
        (CCA8 | 1 << 24, CCA8, False),
        (CCA8 | 1 << 32, CCA8, True),  # a reserved bit alone
        (CCA8 | 1 << 32, CCA8 | 1 << 24, False),  # with a newer target
        (CCA8 | 1 << 32, CCA8 | 1 << 24 | 1 << 32, True),
        (CCA8 | 0xFFFFFF, CCA8, True),
        (CCA8 ^ 0xC0 << 48, CCA8, False),  # stateless source
        (CCA8, CCA8 ^ 0xC0 << 48, False),  # stateless target
        *((CCA8 ^ 1 << bit, CCA8, False) for bit in range(46, 64)),
        *((CCA8 ^ 1 << bit, CCA8, True) for bit in (*range(24), *range(32, 46))),
    ],
)
def test_compatibility_of_words(source: int, target: int, accepted: bool) -> None:  # noqa: FBT001
    assert compatible(source, target) is accepted
    found = {difference.key for difference in differences(source, target)}
    assert "T1" in found
    assert ("B1" in found) == bool((source | target) >> 46 & 3)


# -- when the target changes meanwhile --------------------------------------------------------------------------------


def test_a_target_that_shrank_accepts_what_can_never_be_complete(bench: Bench) -> None:
    state(bench, "RESUMING")
    bench.echo("06.0047", f"{AP_DRIVER}/unbind")
    assert bench.guest_matrix(M1) == product((5,), (4, 0x47))
    assert write(bench, stream(ENTRIES[:2])) == [40]  # never judged: the file waits for 72 bytes
    assert bench.cat(f"/dev/vfio-ap/{M1}/data_size") == "40\n"


@pytest.mark.parametrize("rest", [bytes(32), STREAM[40:], b"\xff" * 32])
def test_a_target_that_shrank_looks_at_as_many_queues_as_the_stream_announces(bench: Bench, rest: bytes) -> None:
    state(bench, "RESUMING")
    bench.echo("06.0047", f"{AP_DRIVER}/unbind")
    bench.mark()
    assert write(bench, stream(ENTRIES[:2]) + rest) == [72]
    assert bench.log() == []
    state(bench, "STOP", "RUNNING")
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text((5, 6), (4, 0x47)))
    bench.echo("06.0047", f"{AP_DRIVER}/bind")
    state(bench, "RESUMING")
    bench.write(f"{MATRIX}/{M1}/ap_config", ",,")
    bench.mark()
    assert write(bench, bytes(8) + rest + rest) == [72]
    assert bench.log() == []


def test_what_is_announced_is_looked_at_although_the_target_shrank(bench: Bench) -> None:
    state(bench, "RESUMING")
    bench.echo("06.0047", f"{AP_DRIVER}/unbind")
    bench.mark()
    assert write(bench, stream([ENTRIES[0], ENTRIES[2]]) + bytes(32)) == [ENODEV]
    assert events(bench) == [("A1", "06.0004")]
    state(bench, "STOP", "RUNNING")


def test_a_target_that_shrank_counts_again(bench: Bench) -> None:
    state(bench, "RESUMING")
    bench.mark()
    assert write(bench, STREAM[:20]) == [20]
    bench.echo("06.0047", f"{AP_DRIVER}/unbind")
    bench.mark()
    assert write(bench, STREAM[20:]) == [E2BIG]
    assert events(bench) == [("N1", "4", "2")]


def test_a_target_that_grew_takes_no_more_than_before(bench: Bench) -> None:
    bench.put(M1, "unassign_domain", "0x47")
    state(bench, "RESUMING")
    bench.put(M1, "assign_domain", "0x47")
    bench.mark()
    # Only the number is new: what fills the old length is judged as if it were all.
    assert write(bench, STREAM, stream(ENTRIES[:2])) == [EIO, ENODEV]
    assert events(bench) == [("W4", "72", "40"), ("N1", "2", "4")]
    state(bench, "RUNNING")
    bench.put(M1, "unassign_domain", "0x47")
    state(bench, "RESUMING")
    bench.put(M1, "assign_domain", "0x47")
    assert write(bench, STREAM[:40], b"", b"\0") == [40, 0, EIO]


# -- against a naive target -------------------------------------------------------------------------------------------


def answers(words: dict[int, int], pieces: Sequence[bytes]) -> tuple[list[int | str], list[Event]]:
    """Return what a naive target answers, and what it logs."""
    naive = NaiveV2(NaiveHost(words))
    file = naive.session()
    return [naive.write(file, piece) for piece in pieces], naive.host.log


@pytest.fixture(scope="module")
def shared() -> Bench:
    """A target that many streams are sent to."""
    return Bench(HOST)


def compare(bench: Bench, pieces: list[bytes], words: dict[int, int]) -> None:
    expected, log = answers(words, pieces)
    assert deliver(bench, *pieces) == expected
    assert events(bench) == log
    state(bench, "RUNNING")


def chop(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


WORDS = dict(zip(APQNS, (CCA8, CCA8, EP11_7, EP11_7), strict=True))
PLACES = st.lists(st.integers(0, 200), max_size=6)


def test_the_naive_target_agrees_with_the_vectors() -> None:
    for vector in VECTORS.values():
        expected, log = answers(WORDS, vector.pieces)
        assert tuple(expected) == vector.results
        assert tuple(log) == vector.log


@given(length=st.integers(0, 72), places=PLACES)
def test_truncations(shared: Bench, length: int, places: list[int]) -> None:
    pieces = chop(STREAM[:length], places)
    compare(shared, pieces, WORDS)


@times(3)
@given(flips=st.lists(st.integers(0, 72 * 8 - 1), min_size=1, max_size=4), places=PLACES)
def test_bit_flips(shared: Bench, flips: list[int], places: list[int]) -> None:
    data = bytearray(STREAM)
    for bit in flips:
        data[bit // 8] ^= 0x80 >> bit % 8
    compare(shared, chop(bytes(data), places), WORDS)


@pytest.mark.parametrize("byte", range(72))
def test_single_bit_flips(shared: Bench, byte: int) -> None:
    for bit in range(8):
        data = bytearray(STREAM)
        data[byte] ^= 1 << bit
        compare(shared, [bytes(data)], WORDS)


WORD = st.one_of(
    st.sampled_from([CCA8, EP11_7, 0]),
    st.integers(0, 2**64 - 1),
    st.builds(lambda word, bit: word ^ 1 << bit, st.sampled_from([CCA8, EP11_7]), st.integers(0, 63)),
)
ENTRY = st.tuples(WORD, st.one_of(st.sampled_from([*APQNS, 0x0704, 0]), st.integers(0, 0xFFFF)))
STREAMS = st.one_of(
    st.builds(stream, st.lists(ENTRY, min_size=4, max_size=4)),
    st.builds(stream, st.lists(ENTRY, max_size=6), st.sampled_from([None, None, 3, 4, 5])),
    st.builds(lambda words: stream(list(zip(words, APQNS, strict=True))), st.lists(WORD, min_size=4, max_size=4)),
    st.permutations(ENTRIES).map(stream),
    st.binary(max_size=100),
)


@times(4)
@given(data=STREAMS, more=st.binary(max_size=20), places=PLACES)
def test_any_stream_in_any_pieces(shared: Bench, data: bytes, more: bytes, places: list[int]) -> None:
    compare(shared, chop(data, places), WORDS)
    compare(shared, [*chop(data, places), more, b""], WORDS)


def collector() -> tuple[list[str], Callable[..., None]]:
    lines: list[str] = []

    def log(line: str, *, prefix: bool = True) -> None:
        assert prefix
        lines.append(line)

    return lines, log


def results(file: MigrationFile, pieces: list[bytes]) -> list[int | str]:
    found: list[int | str] = []
    for piece in pieces:
        try:
            found.append(file.write(piece))
        except KernelError as error:
            found.append(error.name)
    return found


@times(3)
@given(
    target=st.dictionaries(st.sampled_from([*APQNS, 0, 0xFFFF]), WORD, max_size=4),
    entries=st.lists(ENTRY, max_size=4),
    places=PLACES,
)
def test_any_target_with_any_words(target: dict[int, int], entries: list[Entry], places: list[int]) -> None:
    """The file alone, with words that only records of old kernels can have."""
    lines, log = collector()
    rows = [Row(apqn >> 8, Mask.of(apqn & 0xFF), word) for apqn, word in target.items()]
    file = ResumingFile(Journal(), "/stream", lambda: Target(stream_size(len(target)), len(target), lambda: rows), log)
    pieces = chop(stream(entries), places)
    expected, said = answers(target, pieces)
    assert results(file, pieces) == expected
    assert len(lines) == len(said)


def test_a_good_stream_is_not_looked_at_entry_by_entry() -> None:
    """65,536 queues, on a target with newer cards, cost less than one call per four of them."""
    source = [Row(apid, ALL, CCA8 - (1 << 24)) for apid in range(256)]
    target = Target(stream_size(65536), 65536, lambda: [Row(apid, ALL, CCA8) for apid in range(256)])
    data = make_stream(65536, source)
    assert calls(lambda: make_stream(65536, source)) < 1000
    file = ResumingFile(Journal(), "/stream", lambda: target, collector()[1])
    assert calls(lambda: file.write(data)) < 16384
    lines, log = collector()
    worse = ResumingFile(Journal(), "/stream", lambda: target, log)
    assert results(worse, [data[:-16] + data[-32:-16]]) == [len(data)]  # one queue twice: taken, as the driver does
    worse = ResumingFile(Journal(), "/stream", lambda: target, log)
    assert results(worse, [data[:-16] + b"\xff" + data[-15:]]) == [EFAULT]
    assert lines[0].endswith("source queue ff.00ff does not fit the target queue")


def test_a_target_without_all_its_queues_takes_no_stream_that_ends_with_zeros() -> None:
    """The source's matrix has a queue without a device as well: the stream is as long, but has no such queue."""
    rows = [Row(5, Mask.of(4), CCA8)]
    target = Target(stream_size(2), 2, lambda: rows)
    assert judge(make_stream(2, rows), target).errno == errno.ENODEV


# -- from one host to another -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "result"), [("CEX8C", 40), ("CEX7C", EFAULT), ("CEX8P", EFAULT), ("CEX8A", EFAULT), ("CEX6C", EFAULT)]
)
def test_from_a_cex8_to(card: str, result: int | str) -> None:
    mdev = f'[[mdev]]\nuuid = "{M2}"\nadapters = [5]\ndomains = [4, 0x47]\nguest = true\n'
    head = '[qci]\ndomains = [4, 0x47]\n[masks]\napmask = "0x0"\n'
    source = Bench(head + '[[card]]\nadapter = 5\ntype = "CEX8C"\n' + mdev)
    target = Bench(head + f'[[card]]\nadapter = 5\ntype = "{card}"\n' + mdev)
    state(source, "STOP_COPY", uuid=M2)
    data = bytes(transfer(source, M2).read(0, 4096))
    state(target, "RESUMING", uuid=M2)
    assert write(target, data, uuid=M2) == [result]


@pytest.mark.parametrize(("source", "target"), [(4, 5), (4, 8), (5, 7), (7, 8)])
def test_to_a_newer_card(source: int, target: int) -> None:
    mdev = f'[[mdev]]\nuuid = "{M2}"\nadapters = [5]\ndomains = [4]\nguest = true\n'
    head = '[qci]\ndomains = [4]\n[masks]\napmask = "0x0"\n'
    hosts = [
        Bench(head + f'[[card]]\nadapter = 5\ntype = "CEX{generation}P"\n' + mdev) for generation in (source, target)
    ]
    for sender, receiver, result in ((hosts[0], hosts[1], 24), (hosts[1], hosts[0], EFAULT)):
        state(sender, "STOP_COPY", uuid=M2)
        data = bytes(transfer(sender, M2).read(0, 4096))
        state(receiver, "RESUMING", uuid=M2)
        assert write(receiver, data, uuid=M2) == [result]
        for host in hosts:
            state(host, "RUNNING", uuid=M2)
