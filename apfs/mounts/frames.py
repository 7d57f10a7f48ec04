"""The protocol of a migration between machines: frames, each a line of JSON.

`{"frame": "take", "stream": "AAAABA..."}`: the name of the frame, then its fields. Frames are text, so that any byte
stream can carry them and people can read them. Unknown fields are ignored; any other deviation is a `ChannelError`.
"""

from __future__ import annotations

import json
import os
from types import UnionType
from typing import Any

VERSION = 1
"""Of the protocol. Frames that an older end does not understand make it another."""
LONGEST = 4 << 20
"""Most bytes of a frame. The longest stream, 65,536 queues, takes 1.4 MB."""
_PIECE = 1000
"""How many entries of a list go into a frame."""
_MOST = 65_536 * 32
"""Most entries of a list: more than a driver finds wrong with all queues."""
_SHOWN = 80
_READ = 1 << 16

_Fields = dict[str, type | UnionType]
FRAMES: dict[str, _Fields] = {
    "hello": {
        "role": str,
        "check": bool,
        "uuid": str,
        "host": str,
        "driver": str,
        "migratable": bool,
        "secure_execution": bool,
    },
    # an end that cannot take part
    "sorry": {"why": str},
    # from the source
    "prepare": {},
    "take": {"stream": str},
    "run": {},
    "undo": {},
    "closed": {},
    "forecast": {"stream": str},
    # from the target: first what belongs to an answer, in any number of pieces
    "log": {"entries": list},
    "findings": {"entries": list},
    "done": {},
    "failed": {"errno": str, "path": str},
    "answer": {"errno": str | None, "judged": bool, "matrix": dict | None, "guest_matrix": dict | None},
}
"""The fields of each frame, and what they are."""


class ChannelError(Exception):
    """What comes from the other end is not what it should be, or nothing comes any more. The message says what."""


class LostError(ChannelError):
    """The other end is gone."""


def encode(name: str, **fields: object) -> bytes:
    """Return a frame."""
    return json.dumps({"frame": name, **fields}).encode() + b"\n"


def decode(line: bytes) -> tuple[str, dict[str, Any]]:
    """Return the name and the fields of a frame. What it would do to a terminal if it was shown is taken out."""
    try:
        frame = printable(json.loads(line))
    except (ValueError, RecursionError):
        frame = None
    name = frame.get("frame") if isinstance(frame, dict) else None
    if not isinstance(name, str):
        raise ChannelError(f"the other end is not `apfs migrate`, it says: {_shown(line)}")
    if name == "hello" and frame.get("protocol") != VERSION:
        other = f"{frame.get('protocol')!r} of the protocol (apfs {frame.get('apfs')})"
        raise ChannelError(f"the other end has version {other}, this end {VERSION}: use the same apfs")
    if name not in FRAMES:
        raise ChannelError(f"the other end sends an unknown frame: {_shown(line)}")
    for field, kind in FRAMES[name].items():
        if field not in frame or not isinstance(frame[field], kind):
            raise ChannelError(f"the other end sends a frame {name} whose {field} is missing or wrong: {_shown(line)}")
    return name, {field: frame[field] for field in FRAMES[name]}


def printable(value: Any) -> Any:  # noqa: ANN401 -- whatever JSON has
    """Return a value without characters that a terminal would obey."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in value)
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return value


def _shown(line: bytes) -> str:
    text = str(printable(line[: 4 * _SHOWN].decode(errors="replace").strip()))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class Channel:
    """Two descriptors, from and to the other end. They stay open when it is no longer used."""

    def __init__(self, source: int, sink: int) -> None:
        """Read frames from `source` and write them to `sink`."""
        self._source = source
        self._sink = sink
        self._pending = bytearray()
        for descriptor in (source, sink):
            os.set_blocking(descriptor, True)

    def send(self, name: str, **fields: object) -> None:
        """Send a frame. `LostError` if the other end cannot have got all of it."""
        frame = encode(name, **fields)
        try:
            while frame:
                frame = frame[os.write(self._sink, frame) :]
        except OSError as error:
            raise LostError(f"the connection broke ({error.strerror})") from None

    def send_list(self, name: str, entries: list[Any]) -> None:
        """Send a list of any length, as frames."""
        for start in range(0, len(entries), _PIECE):
            self.send(name, entries=entries[start : start + _PIECE])

    def receive(self, *names: str) -> tuple[str, dict[str, Any]]:
        """Return the next frame, which must be one of these. `LostError` at the end: a part of a frame is nothing."""
        name, fields = decode(self._line())
        if name not in names:
            raise ChannelError(f"the other end sends a frame {name} where {' or '.join(names)} should be")
        return name, fields

    def receive_after(self, what: str, *names: str) -> tuple[str, dict[str, Any], list[Any]]:
        """Return the next frame that is one of these, and the entries of a list that comes before it."""
        entries: list[Any] = []
        while True:
            name, fields = self.receive(what, *names)
            if name != what:
                return name, fields, entries
            entries += fields["entries"]
            if len(entries) > _MOST:
                raise ChannelError(f"the other end sends more than {_MOST:,} entries of {what}")

    def _line(self) -> bytes:
        looked = 0
        while (end := self._pending.find(b"\n", looked)) < 0:
            looked = len(self._pending)
            if looked > LONGEST:
                start = bytes(self._pending[:_SHOWN])
                raise ChannelError(f"the other end sends a frame of more than {LONGEST:,} bytes: {_shown(start)}")
            try:
                piece = os.read(self._source, _READ)
            except OSError as error:
                raise LostError(f"the connection broke ({error.strerror})") from None
            if not piece:
                said = f"; the last data received: {_shown(bytes(self._pending))}" if self._pending else ""
                raise LostError(f"the connection ended{said}")
            self._pending += piece
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return line
