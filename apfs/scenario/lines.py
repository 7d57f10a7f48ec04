"""The line of a TOML text on which a value is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tomlkit import TOMLDocument

Where = tuple[str | int, ...]
"""A path of keys, and of indices into arrays."""

_MARK = "\N{PILCROW SIGN} here"


def line_of(text: str, where: Where) -> int:
    """Return the line of the value at a path, or of the nearest thing around it that has one.

    tomlkit does not tell where something is, but it keeps the text as it was. So the value gets a comment, and the line
    on which that appears is the one. Some values cannot have one, such as those inside of an array.
    """
    import tomlkit  # noqa: PLC0415 -- only needed when there is a mistake to report

    for length in range(len(where), 0, -1):
        document = tomlkit.parse(text)
        item = _item(document, where[:length])
        item.comment(_MARK)
        for number, line in enumerate(document.as_string().split("\n"), 1):
            if _MARK in line:
                return number - _lines_before_end(item)
    return 1


def _item(document: TOMLDocument, where: Where) -> Any:  # noqa: ANN401 -- any item of tomlkit
    """Return the item at a path. An item without a line of its own is represented by the first thing inside it."""
    from tomlkit.items import AoT, Table  # noqa: PLC0415

    item = next(_found(document, where))
    while True:
        if isinstance(item, AoT):
            item = item[0]
        elif isinstance(item, Table) and item.is_super_table():  # [a.b] without [a], or a.b = 1
            item = next(found for key, found in item.value.body if key)
        else:
            return item


def _found(item: Any, where: Where) -> Iterator[Any]:  # noqa: ANN401 -- any item of tomlkit
    """Yield what there is at a path from an item on. A table may be in several places, each with other keys."""
    from tomlkit.items import AbstractTable  # noqa: PLC0415

    if not where:
        yield item
    elif isinstance(where[0], str):
        container = item.value if isinstance(item, AbstractTable) else item
        for key, found in container.body:  # which has the items; indexing makes plain values of some, such as true
            if key and key.key == where[0]:
                yield from _found(found, where[1:])
    else:
        yield from _found(item[where[0]], where[1:])


def _lines_before_end(item: Any) -> int:  # noqa: ANN401 -- any item of tomlkit
    """Return how many lines an item has before the one with its end, where its comment goes."""
    from tomlkit.items import Array  # noqa: PLC0415

    return item.as_string().count("\n") if isinstance(item, Array) else 0
