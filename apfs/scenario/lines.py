"""Finds the line of a value in a TOML text.

The standard library's parser does not report lines, and tomlkit moves tables of one array together if others are in
between. So this scans a text that is known to be valid, and uses the parser only for its keys and headers.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apfs.scenario.limits import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

Where = tuple[str | int, ...]
"""A path of keys, and of indices into arrays."""

_BARE = re.compile(r"[ \t]*([A-Za-z0-9_-]+)[ \t]*")


def line_of(text: str, where: Where) -> int:
    """Return the line of the value at a path, or of the nearest thing around it, or inside of it, that has one."""
    most, found = 0, 1
    for path, line in _Places(text):
        common = next((at for at, pair in enumerate(zip(path, where, strict=False)) if pair[0] != pair[1]), None)
        length = min(len(path), len(where)) if common is None else common
        if length > most:
            most, found = length, line
    return found


@dataclass
class _Frame:
    """What is open: an array or an inline table. The lowest one is the document, which has keys as a table has."""

    path: Where
    begin: int
    """Where the next key begins."""
    index: int | None = None
    """Which item of an array comes."""


class _Places:
    """Goes through a text that is right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tables = _Tables()
        self._document = _Frame((), 0)
        self._frames = [self._document]
        self._value: Where = ()
        """The path of the value that comes."""
        self._header = False

    def __iter__(self) -> Iterator[tuple[Where, int]]:
        """Yield path and line of each header, of each key, and of each inline table in an array, in their order."""
        line, counted = 1, 0
        for token in TOKEN.finditer(self._text):
            line, counted = line + self._text.count("\n", counted, token.start()), token.start()
            path = (self._in_header if self._header else self._in_body)(token.group(), *token.span())
            if path is not None:
                yield path, line
        if self._header:
            yield self._enter(len(self._text)), line

    def _enter(self, end: int) -> Where:
        self._document.path = self._tables.enter(self._text[self._document.begin : end])
        return self._document.path

    def _in_header(self, what: str, start: int, end: int) -> Where | None:
        """Look for the end of a header; return the path of its table."""
        if what != "\n":
            return None
        path = self._enter(start)
        self._header, self._document.begin = False, end
        return path

    def _in_body(self, what: str, start: int, end: int) -> Where | None:
        """Return the path of a key, or of an inline table that is an item of an array."""
        frame = self._frames[-1]
        match what:
            case "=":
                self._value = (*frame.path, *_parts(self._text[frame.begin : start]))
                return self._value
            case "[" | "{":
                return self._open(frame, what, start, end)
            case "]" | "}":
                self._frames.pop()
            case "," if frame.index is not None:
                frame.index += 1
            case ",":
                frame.begin = end
            case "\n" if frame is self._document:
                frame.begin = end
        return None

    def _open(self, frame: _Frame, what: str, start: int, end: int) -> Where | None:
        if frame is self._document and not self._text[frame.begin : start].strip():
            self._header = True
            return None
        if frame.index is not None:
            self._value = (*frame.path, frame.index)
        self._frames.append(_Frame(self._value, end, 0 if what == "[" else None))
        return self._value if frame.index is not None and what == "{" else None


class _Tables:
    """The tables that headers name, as far as they are in arrays."""

    def __init__(self) -> None:
        self._last: dict[Where, int] = {}
        """The last index of each array of tables."""

    def enter(self, header: str) -> Where:
        """Return the path of the table below a header."""
        path: Where = ()
        inside: object = tomllib.loads(f"{header}\n")
        while isinstance(inside, dict) and inside:
            ((name, inside),) = inside.items()
            path = (*path, name)
            if isinstance(inside, list):
                self._last[path] = self._last.get(path, -1) + 1
            if path in self._last:
                path = (*path, self._last[path])
        return path


def _parts(key: str) -> Where:
    """Return the parts of a key."""
    bare = _BARE.fullmatch(key)
    if bare:
        return (bare[1],)
    path: Where = ()
    inside: object = tomllib.loads(f"{key.strip()}=0")
    while isinstance(inside, dict):
        ((name, inside),) = inside.items()
        path = (*path, name)
    return path
