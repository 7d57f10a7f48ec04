"""Frames of a migration between machines: what is understood, and that everything else is refused clearly."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.mounts.frames import FRAMES, LONGEST, Channel, ChannelError, LostError, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

HELLO = {"protocol": 1, "apfs": "1", "role": "source", "check": False, "uuid": "u", "host": "h", "driver": "v2"}
HELLO |= {"migratable": True, "secure_execution": False}


@pytest.fixture
def wire() -> Iterator[tuple[Channel, int]]:
    """A channel, and the descriptor from which it reads what a test writes."""
    there, here = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    yield Channel(there, null), here
    os.close(there)
    os.close(null)
    with contextlib.suppress(OSError):
        os.close(here)


def test_a_frame_is_a_line_of_text() -> None:
    assert encode("take", stream="AAAA") == b'{"frame": "take", "stream": "AAAA"}\n'
    assert decode(encode("hello", **HELLO)) == ("hello", {name: HELLO[name] for name in FRAMES["hello"]})


def test_fields_that_are_not_known_do_no_harm() -> None:
    assert decode(encode("run", colour="blue")) == ("run", {})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"sh: 1: apfs: not found\n", "is not `apfs migrate`, it says: sh: 1: apfs: not found"),
        (b"\xff\xfe\0\n", "is not `apfs migrate`"),
        (b"[" * 100_000, "is not `apfs migrate`"),
        (b"[]\n", "is not `apfs migrate`"),
        (b'{"name": "run"}\n', "is not `apfs migrate`"),
        (b'{"frame": ["run"]}\n', "is not `apfs migrate`"),
        (b'{"frame": "jump"}\n', 'an unknown frame: {"frame": "jump"}'),
        (b'{"frame": "take"}\n', "a frame take whose stream is missing or wrong"),
        (b'{"frame": "take", "stream": 5}\n', "a frame take whose stream is missing or wrong"),
        (b'{"frame": "hello"}\n', "version None of the protocol .apfs None., this end 1: use the same apfs"),
        (encode("hello", **HELLO | {"protocol": 2}), "version 2 of the protocol .apfs 1., this end 1: use the same"),
        (encode("hello", **HELLO | {"check": "no"}), "a frame hello whose check is missing or wrong"),
    ],
)
def test_what_is_refused(line: bytes, why: str) -> None:
    with pytest.raises(ChannelError, match=why):
        decode(line)


@pytest.mark.parametrize("depth", range(100, 1100, 100))
def test_lists_in_lists_are_understood_or_refused(depth: int) -> None:
    with contextlib.suppress(ChannelError):
        decode(b'{"frame": "log", "entries": ' + b"[" * depth + b"]" * depth + b"}")


def test_a_terminal_is_not_told_what_to_do() -> None:
    with pytest.raises(ChannelError) as refused:
        decode(b"\x1b[31mWelcome\x07" + b"!" * 1000)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200
    assert decode(encode("log", entries=["a\x1b[2Jb", {"\x1b": ["\n"]}])) == (
        "log",
        {"entries": ["a?[2Jb", {"?": ["?"]}]},
    )


PLAIN = st.none() | st.booleans() | st.integers() | st.text()
JSON = PLAIN | st.lists(PLAIN) | st.dictionaries(st.text(), PLAIN)


@given(st.binary() | st.builds(lambda value: json.dumps(value).encode(), JSON))
def test_nothing_else_is_raised(line: bytes) -> None:
    with contextlib.suppress(ChannelError):
        decode(line)


@given(st.sampled_from(sorted(FRAMES)), st.dictionaries(st.sampled_from(sorted({*HELLO, "entries", "stream"})), JSON))
def test_nothing_else_is_raised_for_fields(name: str, fields: dict[str, object]) -> None:
    with contextlib.suppress(ChannelError):
        decode(encode(name, **fields))


def test_a_part_of_a_frame_is_nothing(wire: tuple[Channel, int]) -> None:
    channel, writer = wire
    os.write(writer, encode("run") + encode("run")[:-1])
    os.close(writer)
    assert channel.receive("run") == ("run", {})
    with pytest.raises(LostError, match=r'the connection ended; the last data received: {"frame": "run"}'):
        channel.receive("run")


def test_a_frame_has_a_limit(wire: tuple[Channel, int]) -> None:
    channel, writer = wire

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                os.write(writer, b"x" * (1 << 16))

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(ChannelError, match=f"a frame of more than {LONGEST:,} bytes: xxx"):
        channel.receive("run")
    os.close(channel._source)  # noqa: SLF001 -- ends the flood
    thread.join()
    os.open(os.devnull, os.O_RDONLY)


def test_the_longest_stream_is_no_problem() -> None:
    assert len(encode("take", stream="A" * ((48 + 16 * 65_536) * 4 // 3))) < LONGEST // 2


def test_a_list_has_a_limit(wire: tuple[Channel, int], monkeypatch: pytest.MonkeyPatch) -> None:
    channel, writer = wire
    monkeypatch.setattr("apfs.mounts.frames._MOST", 3)
    os.write(writer, encode("log", entries=["a", "b"]) * 2 + encode("done"))
    with pytest.raises(ChannelError, match="more than 3 entries of log"):
        channel.receive_after("log", "done")


def test_frames_out_of_order_are_refused(wire: tuple[Channel, int]) -> None:
    channel, writer = wire
    os.write(writer, encode("run"))
    with pytest.raises(ChannelError, match="a frame run where take or undo"):
        channel.receive("take", "undo")
