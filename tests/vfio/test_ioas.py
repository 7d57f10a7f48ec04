"""Address spaces of iommufd, against a model that knows single bytes of small addresses only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from apfs.errors import KernelError
from apfs.vfio.ioas import LAST, Ioas, Pages, Slice

PAGE = 4096
HUGE = 1 << 20
# Half pages, so that alignment matters.
UNIT = 2048
UNITS = st.integers(0, 24)


def memory(start: int, length: int, *, writable: bool = True) -> Slice:
    return Slice(Pages(start - start % PAGE, writable, file=False), start % PAGE, length)


def outcome(call: object, *arguments: object, **options: object) -> object:
    """Return what a call returns, or the name of the errno that it ends with."""
    try:
        return call(*arguments, **options)  # type: ignore[operator]
    except KernelError as error:
        return error.name


class Spaces(RuleBasedStateMachine):
    """The model: which mapping each unit belongs to, and which unit of the caller's memory it shows."""

    @initialize()
    def start(self) -> None:
        self.ioas = Ioas()
        self.users = 0
        self.shown: dict[int, tuple[int, int]] = {}
        self.mappings = 0

    @property
    def step(self) -> int:
        return 2 if self.users or not self.ioas.huge_pages else 1

    def model_map(self, first: int, source: list[int]) -> None:
        self.mappings += 1
        self.shown |= {first + place: (self.mappings, unit) for place, unit in enumerate(source)}

    @rule(first=UNITS, count=st.integers(0, 6), source=UNITS)
    def map(self, first: int, count: int, source: int) -> None:
        found = outcome(self.ioas.map, [memory(source * UNIT, count * UNIT)], first * UNIT, writable=True)
        wanted = range(first, first + count)
        if not count or count % self.step or first % self.step:
            assert found == "EINVAL"
        elif self.shown.keys() & set(wanted):
            assert found == "EEXIST"
        elif source % self.step:
            assert found == "EINVAL"
        else:
            assert found == first * UNIT
            self.model_map(first, [source + place for place in range(count)])

    @rule(first=UNITS, count=st.integers(0, 8))
    def unmap(self, first: int, count: int) -> None:
        found = outcome(self.ioas.unmap, first * UNIT, count * UNIT)
        cut = False
        units = range(first, first + count)
        unmapped = 0
        for unit in units:
            if unit not in self.shown:
                continue
            mapping = self.shown[unit][0]
            whole = [other for other, (owner, _) in self.shown.items() if owner == mapping]
            if not set(whole) <= set(units):
                cut = True
                break
            for other in whole:
                del self.shown[other]
            unmapped += len(whole)
        assert found == ((unmapped * UNIT, not cut) if count else "EINVAL")

    @rule(first=UNITS, count=st.integers(0, 6), to=UNITS)
    def copy(self, first: int, count: int, to: int) -> None:
        parts = outcome(self.ioas.get, first * UNIT, count * UNIT)
        if not count:
            assert parts == "EINVAL"
        elif not self.shown.keys() >= set(range(first, first + count)):
            assert parts == "ENOENT"
        else:
            assert isinstance(parts, list)
            seen = [
                (part.pages.base + part.start) // UNIT + place for part in parts for place in range(part.length // UNIT)
            ]
            assert seen == [self.shown[unit][1] for unit in range(first, first + count)]
            found = outcome(self.ioas.map, parts, to * UNIT, writable=False)
            if found == to * UNIT:
                # One copy of several mappings is several mappings.
                place = to
                for part in parts:
                    length = part.length // UNIT
                    self.model_map(place, seen[place - to : place - to + length])
                    place += length

    @rule()
    def attach(self) -> None:
        whole = all(
            len(units) % 2 == 0 and min(units) % 2 == 0 and self.shown[min(units)][1] % 2 == 0
            for units in self.by_mapping().values()
        )
        found = outcome(self.ioas.add_user)
        assert found == (None if whole or self.step == 2 else "EADDRINUSE")
        self.users += found is None

    @rule()
    def detach(self) -> None:
        if self.users:
            self.ioas.remove_user()
            self.users -= 1

    def by_mapping(self) -> dict[int, list[int]]:
        units: dict[int, list[int]] = {}
        for unit, (mapping, _) in self.shown.items():
            units.setdefault(mapping, []).append(unit)
        return units

    @invariant()
    def shows_what_the_model_does(self) -> None:
        if hasattr(self, "ioas"):
            areas = {(area.iova // UNIT, area.part.length // UNIT) for area in self.ioas}
            assert areas == {(min(units), len(units)) for units in self.by_mapping().values()}


TestSpaces = Spaces.TestCase


@given(
    taken=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), max_size=6),
    length=st.integers(1, 9),
    address=st.integers(0, 64),
)
def test_chosen_addresses_are_the_lowest_that_fit(taken: list[tuple[int, int]], length: int, address: int) -> None:
    ioas = Ioas()
    ioas.add_user()
    used: set[int] = set()
    for first, count in taken:
        if not used & set(range(first, first + count)):
            ioas.map([memory(0, count * PAGE)], first * PAGE, writable=True)
            used |= set(range(first, first + count))
    alignment = 1
    while alignment < length:
        alignment *= 2
    while address % alignment:
        alignment //= 2
    expected = next(
        page for page in range(1, 1000) if page % alignment == 0 and not used & set(range(page, page + length))
    )
    assert ioas.map([memory(address * PAGE, length * PAGE)], None, writable=True) == expected * PAGE


def test_chosen_addresses() -> None:
    ioas = Ioas()
    assert ioas.map([memory(0x10000, PAGE)], None, writable=True) == PAGE
    assert ioas.map([memory(0, 1)], None, writable=True) == 2 * PAGE
    assert ioas.map([memory(0x12345, 1)], None, writable=True) == 2 * PAGE + 0x345
    assert ioas.map([memory(16 * HUGE, 3 * HUGE)], None, writable=True) == HUGE
    assert outcome(ioas.map, [memory(0, LAST // 2)], None, writable=True) == "EOVERFLOW"
    ioas.allow([(5 * HUGE, 5 * HUGE + PAGE - 1), (7 * HUGE, 8 * HUGE - 1), (5 * HUGE + PAGE, 5 * HUGE + 2 * PAGE - 1)])
    assert ioas.map([memory(0, 2 * PAGE)], None, writable=True) == 5 * HUGE
    assert ioas.map([memory(0, PAGE)], None, writable=True) == 7 * HUGE
    assert outcome(ioas.map, [memory(0, HUGE)], None, writable=True) == "ENOSPC"
    assert ioas.map([memory(0, PAGE)], 0, writable=True) == 0
    ioas.allow([])
    assert outcome(ioas.add_user) == "EADDRINUSE"


def test_the_end_of_the_addresses() -> None:
    ioas = Ioas()
    assert outcome(ioas.map, [memory(0, 2 * PAGE)], LAST + 1 - PAGE, writable=True) == "EOVERFLOW"
    assert ioas.map([memory(0, PAGE)], LAST + 1 - PAGE, writable=True) == LAST + 1 - PAGE
    assert outcome(ioas.unmap, LAST, 2) == outcome(ioas.get, LAST, 2) == "EOVERFLOW"
    assert ioas.unmap_all() == PAGE
    assert ioas.unmap_all() == 0


def test_what_may_only_be_read_stays_so() -> None:
    ioas = Ioas()
    ioas.map([memory(0, PAGE, writable=False)], 0, writable=False)
    assert outcome(ioas.map, ioas.get(0, PAGE), PAGE, writable=True) == "EPERM"
    assert ioas.map(ioas.get(0, PAGE), PAGE, writable=False) == PAGE


@pytest.mark.parametrize(
    ("last", "pieces"),
    [
        (PAGE - 1, [(0, 1), (1, 3)]),
        (3 * PAGE - 1, [(0, 3), (3, 1)]),
        (4 * PAGE - 1, [(0, 4)]),
        (0, [(0, 4)]),
        (9 * PAGE - 1, [(0, 4)]),
    ],
)
def test_cutting(last: int, pieces: list[tuple[int, int]]) -> None:
    ioas = Ioas()
    ioas.map([memory(0x10000, 4 * PAGE)], 0, writable=True)
    ioas.disable_huge_pages()
    ioas.cut(last)
    assert [(area.iova, area.part.length) for area in ioas] == [(first * PAGE, n * PAGE) for first, n in pieces]
    assert sum(part.length for part in ioas.get(0, 4 * PAGE)) == 4 * PAGE
    assert outcome(ioas.cut, 2 * PAGE) == "EINVAL"
