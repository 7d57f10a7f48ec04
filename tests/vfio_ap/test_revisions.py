"""Revisions of the migration series beside each other: what differs, what is random, and what becomes of a stream that
one of them sends and another one gets.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apfs.host import Host
from apfs.scenario.reader import loads
from apfs.sysfs.entries import BOTH
from apfs.testing.files import Shell
from apfs.vfio_ap.migration import DEFAULT, REVISIONS
from apfs.vfio_ap.migration.v2 import compatible
from apfs.vfio_ap.migration.v4 import V4
from tests.examples import times
from tests.hosts import M1, M2, MATRIX, Bench, attempt, config_text

from .naive import Naive, NaiveFile, NaiveHost, NaiveNext, NaiveV4
from .streams import (
    CCA8,
    ENTRIES,
    EP11_7,
    HOST,
    STREAM,
    Entry,
    check_without_migration,
    cut,
    deliver,
    events,
    forecast,
    host,
    next_stream,
    state,
    stream,
    transfer,
    v4_stream,
    write,
)
from .test_migration import WORDS as V2_WORDS
from .test_migration import chop, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apfs.vfio_ap.migration.revision import MigrationFile

CLIENT = f"/dev/vfio-ap/{M1}"
STATE = f"{CLIENT}/migration_state"
MAKE: dict[str, Callable[[Sequence[Entry]], bytes]] = {"v2": stream, "v4": v4_stream, "next": next_stream}
OFFERED = list(MAKE)
SECURE = "secure_execution = true\n" + HOST

# -- the table of the description of the protocol, row by row: what each revision says -------------------------------


def test_the_words_of_scenarios() -> None:
    assert list(REVISIONS) == ["none", "v2", "v4", "next"]
    assert DEFAULT == loads("").driver == "v2"
    assert [revision.name for revision in REVISIONS.values() if revision] == OFFERED


@pytest.mark.parametrize(
    ("driver", "migratable", "secure"),
    [("none", False, False), ("v2", True, True), ("v4", True, True), ("next", True, False)],
)
def test_row_features(driver: str, migratable: bool, secure: bool) -> None:  # noqa: FBT001
    for text, expected in ((HOST, migratable), (SECURE, secure)):
        features = host(driver, text).cat(f"{MATRIX}/features")
        assert features == f"guest_matrix hotplug ap_config{' migratable' if expected else ''}\n"


@pytest.mark.parametrize(
    ("driver", "errno"), [("none", "ENOTTY"), ("v2", "EPERM"), ("v4", "EPERM"), ("next", "ENOTTY")]
)
def test_row_secure_execution_host(driver: str, errno: str) -> None:
    bench = host(driver, SECURE)
    assert attempt(lambda: bench.echo("STOP", STATE)) == errno
    assert events(bench) == ([("S1",)] if errno == "EPERM" else [])


def test_without_migration_there_is_nothing_to_ask() -> None:
    bench = host("none")
    before = bench.dump("/sys")
    check_without_migration(bench)
    assert bench.dump("/sys") == before
    bench.echo(1, f"{CLIENT}/reset")
    assert bench.status()["mdevs"][M1]["migration_state"] is None
    assert bench.status()["driver"] == "none"


@pytest.mark.parametrize("driver", OFFERED)
def test_row_state_at_open(driver: str) -> None:
    bench = host(driver)
    assert bench.cat(STATE) == "RUNNING\n"
    state(bench, "STOP_COPY")
    bench.run_guest(M1, 0)
    bench.run_guest(M1)
    assert bench.cat(STATE) == "RUNNING\n"


class Another(V4):
    """A revision that nobody has posted: v4, but with its queues from the highest to the lowest."""

    name = "v5"

    def preview(self) -> bytes:
        data = super().preview()
        entries = [data[start : start + 16] for start in range(16, len(data), 16)]
        return data[:16] + b"".join(reversed(entries))


def test_another_revision_is_a_class_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REVISIONS, Another.name, Another)
    source, target = Shell(Host(replace(loads(HOST), driver="v5"))), host("v4")
    assert source.status()["driver"] == "v5"
    data = preview(source)
    assert data == v4_stream(ENTRIES[::-1])
    assert deliver(target, data) == [80]


@pytest.mark.parametrize("driver", list(REVISIONS))
def test_row_what_only_v1_had(driver: str) -> None:
    bench = host(driver)
    assert "migratable" not in bench.ls(f"{MATRIX}/{M1}")


@pytest.mark.parametrize(
    ("driver", "results"),
    [
        ("v2", ["E2BIG", "E2BIG", "E2BIG"]),
        ("v4", ["EINVAL", "EIO", "EFAULT"]),
        ("next", [112, 12, "EINVAL"]),
    ],
)
def test_row_magic(driver: str, results: list[int | str]) -> None:
    """Other first bytes than those that the revision has: v2 and v4 take them for the number of queues."""
    data = bytes.fromhex("70616676") + MAKE[driver](ENTRIES)[4:]
    assert deliver(host(driver), data) == results[:1]
    assert deliver(host(driver), data[:12], data[12:]) == results[1:]


@pytest.mark.parametrize(("driver", "result"), [("v2", "EIO"), ("v4", 80), ("next", 112)])
def test_row_destination_needs(driver: str, result: int | str) -> None:
    """An empty device is enough for v4 and next, if queues are bound."""
    bench = host(driver)
    bench.write(f"{MATRIX}/{M1}/ap_config", ",,")
    assert deliver(bench, MAKE[driver](ENTRIES)) == [result]
    bench = host(driver)
    bench.unbind("05.0004")
    bench.write(f"{MATRIX}/{M1}/ap_config", ",,")
    assert deliver(bench, MAKE[driver](ENTRIES)) == ["EIO" if driver == "v2" else "ENODEV"]


@pytest.mark.parametrize(("driver", "header", "start"), [("v2", 8, 0), ("v4", 16, 0), ("next", 48, 8)])
def test_row_header(driver: str, header: int, start: int) -> None:
    bench = host(driver)
    state(bench, "STOP_COPY")
    data = bytes(transfer(bench).read(0, 4096))
    assert len(data) == header + 4 * 16 == int(bench.cat(f"{CLIENT}/data_size"))
    assert data[start : start + 4] == b"\0\0\0\4"
    assert data[:4] == (b"vfap" if driver == "next" else b"\0\0\0\4")
    assert data[header:] == STREAM[8:]


@pytest.mark.parametrize(
    ("driver", "bs"), [("v2", {"entered": 0, "first": 0, "later": 0}), ("v4", {"entered": 1, "first": 2, "later": 3})]
)
def test_row_word_and_snapshot(driver: str, bs: dict[str, int]) -> None:
    assert _bind_states(driver) == bs


def test_row_word_and_snapshot_of_next() -> None:
    assert _bind_states("next") == {"entered": 1, "first": 1, "later": 1}


def _bind_states(driver: str) -> dict[str, int]:
    """Return the bind state of the last queue in streams that are read when it is another one each time."""
    found = {}
    bench = host(driver)
    state(bench, "STOP_COPY")
    for value, when in enumerate(("entered", "first", "later"), 1):
        bench.console(f"tapq 06.0647 bs={value}".replace("0647", "0047"))
        # A stream that began with this read: of next only the first one counts.
        state(bench, "STOP", "STOP_COPY")
        data = bytes(transfer(bench).read(0, 4096))
        found[when] = data[-16:][2] >> 6
    return found


def first(word: int) -> list[Entry]:
    """Return the queues of the source with another word of the first."""
    return [(word, 0x0504), *ENTRIES[1:]]


# What a row is about: the queues that the source has, how its stream is written, and what v2, v4 and next answer.
ROWS: dict[str, tuple[list[Entry], Callable[[bytes], list[bytes]], tuple[str, str, str]]] = {
    "missing queue": ([*ENTRIES[:3], (EP11_7, 0x0747)], lambda data: [data], ("ENODEV", "ENODEV", "ENODEV")),
    "incompatible": (first(CCA8 | 1 << 24), lambda data: [data], ("EFAULT", "EFAULT", "EINVAL")),
    "stateless to native": (first(CCA8 ^ 0xC0 << 48), lambda data: [data], ("EFAULT", "EFAULT", "")),
    "fewer queues": ([*ENTRIES[:2]], lambda data: [data], ("ENODEV", "", "")),
    "more queues": ([*ENTRIES, (EP11_7, 0x0704)], lambda data: [data], ("EIO", "ENODEV", "ENODEV")),
    "more queues, noticed early": (
        [*ENTRIES, (EP11_7, 0x0704)],
        lambda data: [data[:8], data[8:]],
        ("EIO", "EFAULT", "ENODEV"),
    ),
    "too long": ([*ENTRIES], lambda data: [data + b"\0"], ("EIO", "EIO", "EIO")),
    "too short": ([*ENTRIES], lambda data: [data[:-1]], ("", "", "")),
    "chunked": ([*ENTRIES], lambda data: [data[:20], data[20:]], ("", "EFAULT", "")),
    "zero-length": ([*ENTRIES], lambda _data: [b""], ("", "EIO", "EINVAL")),
}


@pytest.mark.parametrize(("index", "driver"), list(enumerate(OFFERED)))
@pytest.mark.parametrize("row", ROWS)
def test_rows_of_streams(index: int, driver: str, row: str) -> None:
    entries, pieces, results = ROWS[row]
    *_, last = deliver(host(driver), *pieces(MAKE[driver](entries)))
    assert (last if isinstance(last, str) else "") == results[index]


@pytest.mark.parametrize(("driver", "result"), [("v2", "EFAULT"), ("v4", 32), ("next", "EINVAL")])
def test_row_equal_bind_states(driver: str, result: int | str) -> None:
    bench = host(driver)
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text((5,), (4,), ()))
    word = CCA8 | 2 << 46
    bench.console("tapq 05.0004 bs=2")
    # v2 has no bind state in its record of the card, so that equal ones cannot come from outside.
    assert deliver(bench, MAKE[driver]([(word, 0x0504)])) == [result]
    assert compatible(word, word)


@pytest.mark.parametrize(("driver", "count"), [("v2", 1), ("v4", 2), ("next", 2)])
def test_row_incompatible_queues_that_are_told_of(driver: str, count: int) -> None:
    bench = host(driver)
    entries = [(word | 1 << 24, apqn) for word, apqn in ENTRIES[:2]]
    deliver(bench, MAKE[driver]([*entries, *ENTRIES[2:]]))
    assert [event[0] for event in events(bench)].count("Q0") == count


@pytest.mark.parametrize(("driver", "reading", "writing"), [("v2", "ENODEV", "EIO"), ("v4", "", ""), ("next", "", "")])
def test_row_file_after_stop(driver: str, reading: str, writing: str) -> None:
    bench = host(driver)
    state(bench, "STOP_COPY")
    saving = transfer(bench)
    state(bench, "RESUMING")
    resuming = transfer(bench)
    state(bench, "STOP")
    assert attempt(lambda: saving.read(0, 10)) == reading
    assert attempt(lambda: resuming.write(MAKE[driver](ENTRIES))) == writing


@pytest.mark.parametrize(
    ("driver", "after", "reading"), [("v2", "STOP_COPY", ""), ("v4", "RUNNING", ""), ("next", "RUNNING", "EINVAL")]
)
def test_row_reset(driver: str, after: str, reading: str) -> None:
    bench = host(driver)
    state(bench, "STOP_COPY")
    file = transfer(bench)
    bench.mark()
    bench.echo(1, f"{CLIENT}/reset")
    assert bench.resets() == [4]
    assert bench.cat(STATE) == f"{after}\n"
    assert attempt(lambda: file.read(0, 10)) == reading


@pytest.mark.parametrize(("driver", "name"), [("v2", "migf"), ("v4", "mig_file"), ("next", "mig_file")])
def test_row_name_of_the_file(driver: str, name: str) -> None:
    bench = host(driver)
    for target in ("STOP_COPY", "RESUMING"):
        state(bench, target)
        assert transfer(bench).inode == f"vfio_ap_{name}"


@pytest.mark.parametrize(("driver", "pinned"), [("v2", False), ("v4", False), ("next", True)])
def test_row_open_file_and_removal(driver: str, pinned: bool) -> None:  # noqa: FBT001
    bench = host(driver)
    state(bench, "RESUMING")
    file = transfer(bench)
    bench.run_guest(M1, 0)
    assert attempt(lambda: bench.put(M1, "remove", 1)) == ("EBUSY" if pinned else "")
    file.close()
    if pinned:
        bench.put(M1, "remove", 1)


@pytest.mark.parametrize(("driver", "given"), [("v2", None), ("v4", False), ("next", True)])
def test_row_control_domains(driver: str, given: bool | None) -> None:  # noqa: FBT001
    """Whether the target's control domains are replaced; v2 gives nothing at all."""
    bench = host(driver)
    bench.write(f"{MATRIX}/{M1}/ap_config", config_text((5, 6), (4, 0x47), ()))
    assert not isinstance(deliver(bench, MAKE[driver](ENTRIES))[0], str)
    assert bench.show(M1, "control_domains") == ("0004\n0047\n" if given else "")


# -- any stream, in any pieces, in any session ------------------------------------------------------------------------

# 05 and 06 are wholly bound to vfio_ap. Of 07, 07.0004 is the host's, and another device has 07.0047. 08.0047 is bound
# to nothing.
ODD = f"""
[qci]
domains = [0x04, 0x47]
control_domains = [0x04, 0x47, 0x55]
[[card]]
adapter = 5
type = "CEX8C"
[[card]]
adapter = 6
type = "CEX7P"
tapq = {{ apsc = 1 }}
[[card]]
adapters = [7, 8]
type = "CEX8C"
[masks]
apmask = "-5-6-8"
aqmask = "-0x47"
[[mdev]]
uuid = "{M2}"
adapters = [7]
domains = [0x47]
[[mdev]]
uuid = "{M1}"
guest = true
"""
WORDS = {0x0504: CCA8, 0x0547: CCA8, 0x0604: EP11_7, 0x0647: EP11_7, 0x0747: CCA8, 0x0804: CCA8}
NAIVE: dict[str, type[Naive]] = {"v4": NaiveV4, "next": NaiveNext}


class Pair:
    """A target, and the naive one beside it."""

    def __init__(self, driver: str) -> None:
        self.bench = host(driver, ODD)
        self.bench.unbind("08.0047")
        self.driver = driver
        self.start()

    def start(self) -> None:
        """Open the device again, with nothing assigned and all words as they were."""
        self.bench.run_guest(M1, 0)
        self.bench.write(f"{MATRIX}/{M1}/ap_config", ",,")
        self.bench.run_guest(M1)
        words = NaiveHost(dict(WORDS), {}, {0x04, 0x47, 0x55}, {0x0704}, {0x0747})
        self.naive = NAIVE[self.driver](words)
        self.files: list[tuple[MigrationFile, NaiveFile]] = []
        self.session()

    def session(self) -> None:
        state(self.bench, "STOP", "RESUMING")
        self.files.append((transfer(self.bench), self.naive.session()))
        self.bench.mark()

    def write(self, data: bytes, file: int) -> None:
        """Write to one of the files of this device, -1 being the last one, and compare all that comes of it."""
        ours, theirs = self.files[file % len(self.files)]
        self.naive.host.log.clear()
        self.bench.mark()
        taken: list[int] = []
        name = attempt(lambda: taken.append(ours.write(data)))
        assert (name or taken[0]) == self.naive.write(theirs, data)
        if name == "EADDRINUSE":  # these lines are those of ap_config
            assert {line.partition(" ")[0] for line in self.bench.log()} == {"warn"}
        else:
            assert events(self.bench) == self.naive.host.log
        adapters, domains, control = map(sorted, self.naive.host.assigned)
        assert self.bench.show(M1, "ap_config") == config_text(adapters, domains, control)

    def reset(self) -> None:
        self.bench.echo(1, f"{CLIENT}/reset")
        self.naive.reset()


@pytest.fixture(scope="module", params=list(NAIVE))
def two(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


ODD_WORD = st.one_of(
    st.sampled_from([CCA8, EP11_7]),
    st.builds(lambda word, bit: word ^ 1 << bit, st.sampled_from([CCA8, EP11_7]), st.integers(0, 63)),
    st.integers(0, 2**64 - 1),
)
ODD_ENTRY = st.one_of(
    st.sampled_from([(word, apqn) for apqn, word in WORDS.items()]),
    st.tuples(ODD_WORD, st.sampled_from([*WORDS, 0x0704, 0x0847, 0x1010])),
)
ENTRY_LISTS = st.lists(ODD_ENTRY, max_size=6)
CONTROL = st.one_of(st.lists(st.sampled_from([4, 0x47, 0x55]), unique=True), st.lists(st.integers(0, 255), max_size=3))
ANY_STREAM = st.one_of(
    st.builds(v4_stream, ENTRY_LISTS, st.sampled_from([None, None, None, 0, 3, 65536, 65537])),
    st.builds(next_stream, ENTRY_LISTS, CONTROL, st.sampled_from([None, None, None, 0, 3, 65536, 65537])),
    st.builds(stream, ENTRY_LISTS),
    st.binary(max_size=120),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a stream with bytes changed, cut or added."""
    data = bytearray(draw(ANY_STREAM))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=3)):
        if place < len(data):
            data[place] ^= value
    return bytes(data[: draw(st.one_of(st.just(150), st.integers(0, 150)))] + draw(st.binary(max_size=2)))


STEP = st.one_of(
    st.tuples(st.just("write"), mutated(), st.integers(1, 3)),
    st.tuples(st.just("chop"), mutated(), st.lists(st.integers(1, 60), max_size=4)),
    st.sampled_from([("session",), ("reset",)]),
)


@times(2)
@given(steps=st.lists(STEP, min_size=1, max_size=6))
def test_any_steps_against_a_naive_target(two: Pair, steps: list[tuple[object, ...]]) -> None:
    two.start()
    for step in steps:
        if step[0] == "write":
            two.write(step[1], -step[2])  # type: ignore[operator,arg-type]
        elif step[0] == "chop":
            rest: bytes = step[1]  # type: ignore[assignment]
            for size in step[2]:  # type: ignore[attr-defined]
                two.write(rest[:size], -1)
                rest = rest[size:]
            two.write(rest, -1)
        elif step[0] == "session":
            two.session()
        else:
            two.reset()
            two.session()


@pytest.mark.parametrize("byte", range(0, 112, 2))
def test_a_flipped_bit_in_each_byte(two: Pair, byte: int) -> None:
    data = MAKE[two.driver](ENTRIES)
    if byte < len(data):
        flipped = bytearray(data)
        flipped[byte] ^= 1 << byte % 7
        two.start()
        two.write(bytes(flipped), -1)


@pytest.mark.parametrize("length", [0, 1, 4, 7, 8, 11, 12, 15, 16, 17, 31, 32, 47, 48, 49, 64, 79, 80, 111, 112])
def test_truncations(two: Pair, length: int) -> None:
    data = MAKE[two.driver](ENTRIES)[:length]
    two.start()
    two.write(data, -1)
    two.write(b"\0", -1)


# -- from each to each ------------------------------------------------------------------------------------------------

PREDICTED = {
    # What the target answers to a stream of four queues in one write; `lost`: taken, but nothing comes of it.
    ("v2", "v2"): "ok",
    ("v2", "v4"): "lost",
    ("v2", "next"): "EINVAL",
    ("v4", "v2"): "EIO",
    ("v4", "v4"): "ok",
    ("v4", "next"): "EIO",
    ("next", "v2"): "EIO",
    ("next", "v4"): "EINVAL",
    ("next", "next"): "ok",
}


def preview(bench: Shell) -> bytes:
    return bench.read(f"/ctl/migration/{M1}/stream")


@pytest.mark.parametrize(("source", "target"), PREDICTED)
def test_migration(source: str, target: str) -> None:
    sender, receiver = host(source), host(target)
    if target != "v2":
        receiver.write(f"{MATRIX}/{M1}/ap_config", ",,")
    data = preview(sender)
    before, config = (sender.dump(), receiver.dump()), receiver.show(M1, "ap_config")
    receiver.mark()
    answer = forecast(receiver, data)
    assert list(receiver.journal) == []
    assert (sender.dump(), receiver.dump()) == before
    state(sender, "STOP_COPY")
    assert bytes(transfer(sender).read(0, 4096)) == data
    (result,) = deliver(receiver, data)
    expected = PREDICTED[source, target]
    assert (result if isinstance(result, str) else "") == (expected if expected.startswith("E") else "")
    assert answer["errno"] == (expected if expected.startswith("E") else None)
    assert answer["judged"] == (expected != "lost")
    if expected == "ok" and target != "v2":
        assert answer["matrix"] == receiver.status()["mdevs"][M1]["matrix"]
        assert answer["guest_matrix"] == receiver.status()["mdevs"][M1]["guest_matrix"]
        assert receiver.matrix(M1) == ["05.0004", "05.0047", "06.0004", "06.0047"]
    else:
        assert answer["matrix"] is None
        assert receiver.show(M1, "ap_config") == config


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(("source", "target"), list(itertools.product(OFFERED, OFFERED)))
def test_the_forecast_of_small_streams_is_what_happens(source: str, target: str, number: int) -> None:
    """With so few queues that the headers of one may be whole streams of another."""
    data = MAKE[source](ENTRIES[:number])
    receiver = host(target)
    receiver.write(f"{MATRIX}/{M1}/ap_config", config_text((5,), (0x47,)))
    before = assigned(receiver)
    answer = forecast(receiver, data)
    assert (receiver.log(), assigned(receiver)) == ([], before)
    (result,) = deliver(receiver, data)
    assert answer["errno"] == (result if isinstance(result, str) else None)
    assert assigned(receiver) == (answer["matrix"] or before)


def assigned(bench: Bench) -> dict[str, list[int]]:
    matrix: dict[str, list[int]] = bench.status()["mdevs"][M1]["matrix"]
    return matrix


@given(data=st.one_of(mutated(), st.builds(v4_stream, ENTRY_LISTS), st.builds(next_stream, ENTRY_LISTS, CONTROL)))
def test_streams_of_others_in_pieces_at_a_target_of_v2(shared: Bench, data: bytes) -> None:
    compare(shared, chop(data, [4, 8, 12, 72]), V2_WORDS)
    compare(shared, [data], V2_WORDS)


@pytest.fixture(scope="module")
def shared() -> Bench:
    """A target of v2 that many streams are sent to."""
    return Bench(HOST)


@example(data=next_stream([(CCA8, 0x0747)]))  # which another device has
@example(data=v4_stream([(CCA8, 0x0747)]))
@given(data=mutated())
def test_any_forecast_is_what_happens(two: Pair, data: bytes) -> None:
    two.start()
    if not data:
        return
    before = two.bench.dump("/sys/devices/vfio_ap")
    answer = forecast(two.bench, data, M1)
    assert two.bench.dump("/sys/devices/vfio_ap") == before
    assert two.bench.log() == []
    two.write(data, -1)
    (_, naive) = two.files[-1]
    assert naive.position in (0, len(data))
    assert assigned(two.bench) == (answer["matrix"] or {"adapters": [], "domains": [], "control_domains": []})


@pytest.mark.parametrize("driver", OFFERED)
def test_the_forecast_knows_what_was_before(driver: str) -> None:
    bench = host(driver)
    data = MAKE[driver](ENTRIES)
    wrong = MAKE[driver]([(EP11_7, 0x0747), *ENTRIES[1:]])
    assert deliver(bench, wrong) == ["ENODEV"]
    state(bench, "STOP")
    answer = forecast(bench, data)
    assert answer["errno"] == ("EFAULT" if driver == "next" else None)
    (result,) = deliver(bench, data)
    assert (result if isinstance(result, str) else None) == answer["errno"]


@pytest.mark.parametrize(("driver", "text", "errno"), [("none", HOST, "ENOTTY"), ("v2", SECURE, "EPERM")])
def test_a_target_that_takes_no_stream_at_all(driver: str, text: str, errno: str) -> None:
    assert forecast(host(driver, text), STREAM)["errno"] == errno
    assert forecast(host(driver, text), b"")["errno"] == errno
    assert forecast(host("v2"), b"")["errno"] is None


def test_what_the_forecast_says_about_queues() -> None:
    bench = host("next")
    wrong = next_stream([(CCA8 | 1 << 24, 0x0504), *ENTRIES[1:]])
    finding = {"queue": "05.0004", "characteristic": "AP type", "source": "0f", "target": "0e"}
    assert forecast(bench, wrong)["findings"] == [finding]
    lacking = next_stream(ENTRIES, [0x55])
    (found,) = forecast(bench, lacking)["findings"]
    assert found == {"queue": None, "characteristic": "control domain 0055", "source": "present", "target": "missing"}


def test_pieces_of_a_stream_to_check() -> None:
    bench = host("v4")
    tree = bench.host.tree
    file = tree.open(tree.resolve(f"/ctl/migration/{M1}/check"), BOTH)
    for _ in range(2):
        for piece in cut(v4_stream(), 5, 70, 5):
            file.write(piece)
        answer = b""
        while piece := bytes(file.read(0, 7)):
            answer += piece
        assert json.loads(answer)["errno"] is None


@pytest.mark.parametrize("driver", ["none", "v2", "v4", "next"])
def test_no_more_is_taken_than_a_stream_can_have(driver: str) -> None:
    tree = host(driver).host.tree
    file = tree.open(tree.resolve(f"/ctl/migration/{M1}/check"), BOTH)
    for _ in range(2):
        for _ in range(4):
            assert file.write(bytes(1 << 20)) == 1 << 20
        assert attempt(lambda: file.write(b"x")) == "EFBIG"
        assert json.loads(bytes(file.read(0, 1 << 20)))["errno"] == ("ENOTTY" if driver == "none" else "EIO")
        assert attempt(lambda: file.write(bytes((1 << 22) + 1))) == "EFBIG"


def test_largest_stream_of_each() -> None:
    """65,536 queues on both sides, and a device that gets them all."""
    text = f"""
[qci]
domains = "0-255"
[[card]]
adapters = "0-255"
type = "CEX8C"
[masks]
apmask = "0x{0:064x}"
[[mdev]]
uuid = "{M1}"
guest = true
"""
    full = config_text(range(256), range(256), range(256))
    for driver, header in (("v4", 16), ("next", 48)):
        source, target = host(driver, text), host(driver, text)
        source.write(f"{MATRIX}/{M1}/ap_config", full)
        state(source, "STOP_COPY")
        data = bytes(transfer(source).read(0, 1 << 21))
        assert len(data) == header + 16 * 65536
        state(target, "RESUMING")
        assert write(target, data) == [len(data)]
        given = target.status()["mdevs"][M1]["guest_matrix"]
        assert [len(mask) for mask in given.values()] == [256, 256, 256 if driver == "next" else 0]
