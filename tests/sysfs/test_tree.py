"""The tree: identities, listings that are interrupted, links, and nodes that go away."""

from __future__ import annotations

import errno
import posixpath
import stat
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.errors import KernelError
from apfs.host import Host
from apfs.journal.log import Journal
from apfs.journal.records import Refusal, Uevent
from apfs.scenario.reader import load
from apfs.sysfs.entries import BOTH, READ, WRITE, Access, Attribute, Link, Special
from apfs.sysfs.members import Changes, Registry
from apfs.sysfs.openfile import TextFile
from apfs.sysfs.tree import Tree, link_text
from apfs.testing.files import Shell
from tests.calls import calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apfs.sysfs.directory import Directory


class Thing:
    """The subject of a directory of the test tree."""

    def __init__(self) -> None:
        self.text = "x"
        self.writes: list[str] = []
        self.shown = True
        self.target: str | None = "/top/plain"

    def write(self, text: str) -> None:
        self.writes.append(text)


class Woods:
    """A tree with everything a directory can have, in `/top`."""

    def __init__(self) -> None:
        self.tree = Tree(Journal())
        self.thing = Thing()
        self.first: Registry[Thing] = Registry()
        self.second: Registry[Thing] = Registry()
        self.top = self.tree.root.fixed("top", self.entries(), lambda _key: self.thing)
        self.top.fixed("fixed", (Attribute("inner", 0o444, lambda _thing: "i\n"),))
        self.members = self.top.dirs("m", self.first, self.entries())
        self.members.fixed("sub")
        self.top.links("n", self.members, self.first, _Prefixed(self.first))
        self.top.files(
            "p", self.second, Special("file", 0o440, lambda *_: TextFile(self.tree.journal, "/text", lambda: "t"))
        )

    def entries(self) -> tuple[Attribute | Link | Special, ...]:
        return (
            Attribute("attribute", 0o644, lambda thing: f"{thing.text}\n", Thing.write),
            Attribute("hidden", 0o444, lambda _thing: "h\n", None, lambda thing: thing.shown),
            Link("zlink", lambda thing: thing.target),
            Special("special", 0o200, lambda *_: TextFile(self.tree.journal, "/text", lambda: "s")),
        )

    def add(self, registry: Registry[Thing], name: str) -> Thing:
        thing = Thing()
        registry.add(name, thing)
        return thing

    def names(self, path: str = "/top") -> list[str]:
        return [entry.name for entry in self.tree.readdir(self.tree.resolve(path))]


class _Prefixed:
    """The names of a registry with `n` before them."""

    def __init__(self, registry: Registry[Thing]) -> None:
        self._registry = registry

    def name(self, key: int) -> str:
        return f"n{self._registry.name(key)}"

    def find(self, name: str) -> int | None:
        return self._registry.find(name.removeprefix("n")) if name.startswith("n") else None


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(KernelError) as error:
        call()
    return error.value.errno


@pytest.fixture
def woods() -> Woods:
    return Woods()


# -- listings ----------------------------------------------------------------------------------------------------------

NAMES = tuple(f"m{number}" for number in range(6))
FILES = tuple(f"p{number}" for number in range(4))


def full_woods() -> Woods:
    woods = Woods()
    for name in NAMES:
        woods.add(woods.first, name)
    for name in FILES:
        woods.add(woods.second, name)
    return woods


def test_a_listing_has_every_entry_once_and_nothing_that_cannot_be_found() -> None:
    woods = full_woods()
    names = woods.names()
    fixed = {"attribute", "hidden", "zlink", "special", "fixed"}
    assert sorted(names) == sorted(fixed | set(NAMES) | {f"n{name}" for name in NAMES} | set(FILES))
    for entry in woods.tree.readdir(woods.tree.resolve("/top")):
        assert woods.tree.lookup(woods.tree.resolve("/top"), entry.name) == entry.node
        assert woods.tree.path(entry.node) == f"/top/{entry.name}"
        assert entry.type == stat.S_IFMT(woods.tree.stat(entry.node).mode)


def interrupted(woods: Woods, taken: int, change: Callable[[], None]) -> tuple[list[str], list[str]]:
    """List `/top` with a change after so many entries; return what was listed before and after it."""
    directory = woods.tree.resolve("/top")
    before: list[str] = []
    position = 0
    for entry in woods.tree.readdir(directory):
        if len(before) == taken:
            break
        before.append(entry.name)
        position = entry.next
    change()
    return before, [entry.name for entry in woods.tree.readdir(directory, position)]


@pytest.mark.parametrize("taken", range(22))
@pytest.mark.parametrize("victims", ["all", "even", "odd", "none"])
@pytest.mark.parametrize("newcomers", [0, 3])
def test_an_interrupted_listing_loses_and_repeats_nothing(taken: int, victims: str, newcomers: int) -> None:
    woods = full_woods()
    chosen = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2), "none": slice(0, 0)}[victims]
    gone = {*NAMES[chosen], *FILES[chosen]}
    everything = set(woods.names())

    def change() -> None:
        for name in gone:
            (woods.first if name in NAMES else woods.second).discard(name)
        for number in range(newcomers):
            woods.add(woods.first, f"mnew{number}")
            woods.add(woods.second, f"pnew{number}")
        woods.thing.shown = victims == "none"

    before, after = interrupted(woods, taken, change)
    lasting = everything - gone - {f"n{name}" for name in gone} - (set() if victims == "none" else {"hidden"})
    listed = before + after
    assert len(listed) == len(set(listed))
    assert lasting <= set(listed)
    assert not set(after) & gone
    assert set(listed) <= everything | {f"{kind}new{n}" for kind in ("m", "nm", "p") for n in range(newcomers)}


@given(st.data())
def test_a_listing_interrupted_again_and_again(data: st.DataObject) -> None:
    woods = full_woods()
    directory = woods.tree.resolve("/top")
    lasting = set(woods.names())
    listed: list[str] = []
    position, serial = 0, 0
    while True:
        taken = data.draw(st.integers(1, 5))
        piece = [entry for entry, _ in zip(woods.tree.readdir(directory, position), range(taken), strict=False)]
        if not piece:
            break
        listed += [entry.name for entry in piece]
        position = piece[-1].next
        for registry in (woods.first, woods.second):
            present = [registry.name(key) for key in registry.keys(0)]
            for name in data.draw(st.lists(st.sampled_from(present), unique=True, max_size=2)) if present else []:
                registry.discard(name)
                lasting -= {name, f"n{name}"}
        if data.draw(st.booleans()) and serial < 5:
            serial += 1
            woods.add(woods.first, f"new{serial}")
    assert len(listed) == len(set(listed))
    assert lasting <= set(listed)


def test_positions_are_distinct_and_point_behind_their_entry() -> None:
    woods = full_woods()
    directory = woods.tree.resolve("/top")
    entries = list(woods.tree.readdir(directory))
    assert len({entry.next for entry in entries}) == len(entries)
    assert all(entry.next > 0 for entry in entries)
    for number, entry in enumerate(entries, 1):
        assert list(woods.tree.readdir(directory, entry.next)) == entries[number:]


class _Extremes:
    """Members with the smallest and the greatest keys."""

    def __init__(self) -> None:
        self.all = [0, 1, 2**31, 2**32 - 2, 2**32 - 1]

    def name(self, key: int) -> str:
        return f"{key:08x}"

    def find(self, name: str) -> int | None:
        return int(name, 16)

    def subject(self, key: int) -> object | None:
        return self if key in self.all else None

    def parent(self, _key: int) -> int:
        return 0

    def keys(self, _parent: int, after: int) -> Iterator[int]:
        return (key for key in self.all if key > after)

    def count(self, _parent: int) -> int:
        return len(self.all)


def test_the_greatest_keys_are_listed_and_resumed_like_others() -> None:
    tree, members = Tree(Journal()), _Extremes()
    top = tree.root.fixed("top")
    kind = top.dirs("0", members, (Attribute("a", 0o444, lambda _subject: ""),))
    top.fixed("zz")
    entries = list(tree.readdir(tree.resolve("/top")))
    assert [entry.name for entry in entries] == [*(f"{key:08x}" for key in members.all), "zz"]
    for number, entry in enumerate(entries, 1):
        assert list(tree.readdir(tree.resolve("/top"), entry.next)) == entries[number:]
    for key in members.all:
        assert tree.resolve(f"/top/{key:08x}/a") == kind.id(key, 1)
        assert tree.path(kind.id(key, 1)) == f"/top/{key:08x}/a"


def test_every_listing_of_a_host_can_be_resumed_after_every_entry() -> None:
    shell = Shell(Host(load("kernel-doc")))
    shell.echo("node", "/sys/class/zcrypt/create")
    shell.echo("1", "/dev/vfio-ap/7f3c1a52-9d0e-4b6a-8c21-0e5f6a7b8c01/guest")
    tree = shell.host.tree
    directories = [path for path, found in shell.find() if stat.S_ISDIR(found.mode)]
    assert len(directories) > 150
    for path in directories:
        node = tree.resolve(path)
        entries = list(tree.readdir(node))
        for place, entry in enumerate(entries, 1):
            assert list(tree.readdir(node, entry.next)) == entries[place:], path


@pytest.mark.parametrize("path", ["/sys/devices/ap", "/sys/devices/ap/card05", "/sys/bus/ap/devices"])
def test_a_listing_in_progress_goes_on_behind_what_came_back(path: str) -> None:
    host = Host(load("default"))
    tree = host.tree
    before = list(tree.readdir(tree.resolve(path)))
    for number in (5, 6):  # and queues that come later than their card
        host.unplug(number)
        host.scan()
        host.plug(number, "CEX8C")
        host.scan()
    host.change_domains(remove=[4])
    host.scan()
    host.change_domains(add=[4])
    host.scan()
    after = list(tree.readdir(tree.resolve(path)))
    assert [entry.name for entry in after] == [entry.name for entry in before]
    assert {entry.node for entry in after} & {entry.node for entry in before} != {entry.node for entry in after}
    for old, new in zip(before, after, strict=True):
        assert tree.lookup(tree.resolve(path), new.name) == new.node
        for place in (old.next, new.next):
            assert list(tree.readdir(tree.resolve(path), place)) == after[after.index(new) + 1 :]


@pytest.mark.parametrize("path", ["/top", "/top/files"])
def test_what_is_made_again_is_not_listed_twice(path: str) -> None:
    tree, registry = Tree(Journal()), Registry[Thing]()
    top = tree.root.fixed("top")
    things = top.dirs("m", registry)
    top.links("n", things, registry, _Prefixed(registry))
    top.fixed("files").files("p", registry, Special("file", 0o440, lambda *_: TextFile(tree.journal, "/text", str)))
    for name in NAMES:
        registry.add(name, Thing())
    directory = tree.resolve(path)
    before = list(tree.readdir(directory))
    for place, entry in enumerate(before, 1):
        for name in NAMES[1:4]:
            registry.discard(name)
        registry.add("new", Thing())
        for name in reversed(NAMES[1:4]):
            registry.add(name, Thing())
        rest = [found.name for found in tree.readdir(directory, entry.next) if not found.name.endswith("new")]
        assert rest == [found.name for found in before[place:]]
        registry.discard("new")


def test_places_of_what_was_removed_are_forgotten_in_the_end() -> None:
    registry: Registry[Thing] = Registry()
    for number in range(5000):
        registry.add(f"m{number}", Thing())
        registry.discard(f"m{number}")
    assert sum(len(part) for part in vars(registry).values() if isinstance(part, dict)) <= 1000


def test_a_page_of_a_listing_is_not_more_work_in_a_larger_registry() -> None:
    registry: Registry[Thing] = Registry()

    def work() -> int:
        return calls(lambda: list(islice(registry.keys(0, 900), 50)))

    counted = []
    for size in (1000, 4000):
        while len(registry) < size:
            registry.add(f"m{len(registry)}", Thing())
        counted.append(work())
    assert counted[0] == counted[1]


def test_members_can_be_removed_while_they_are_listed() -> None:
    registry: Registry[Thing] = Registry()
    for number in range(1000):
        registry.add(f"m{number}", Thing())
    for number in range(0, 1000, 2):
        registry.discard(f"m{number}")
        registry.add(f"m{number}", Thing())
    seen = []
    for key in registry.keys(0):
        seen.append(registry.name(key))
        registry.discard(seen[-1])
    assert seen == [f"m{number}" for number in range(1000)]
    assert len(registry) == 0


def test_a_listing_in_progress_survives_the_end_of_its_directory(woods: Woods) -> None:
    woods.add(woods.first, "m0")
    directory = woods.tree.resolve("/top/m0")
    position = next(woods.tree.readdir(directory)).next
    woods.first.discard("m0")
    assert refusal(lambda: woods.tree.readdir(directory, position)) == errno.ENOENT


# -- identities --------------------------------------------------------------------------------------------------------


def everything(tree: Tree, node: int) -> Iterator[int]:
    yield node
    if stat.S_ISDIR(tree.stat(node).mode):
        for entry in tree.readdir(node):
            yield from everything(tree, entry.node)


def test_identities_of_a_whole_host_are_distinct_and_lead_back() -> None:
    tree = Host(load("default")).tree
    nodes = list(everything(tree, tree.root.id(0)))
    assert len(nodes) > 300
    assert len(set(nodes)) == len(nodes)
    for node in nodes:
        assert tree.resolve(tree.path(node)) == node
        assert 0 < node < 1 << 63


def test_identities_are_packed_from_kind_key_and_entry(woods: Woods) -> None:
    woods.add(woods.first, "m0")
    key = woods.first.find("m0")
    assert key is not None
    directory = woods.tree.resolve("/top/m0")
    assert directory == woods.members.id(key)
    assert directory & 0xFF == 0
    assert directory >> 8 & 0xFFFF_FFFF == key
    attribute = woods.tree.resolve("/top/m0/attribute")
    assert attribute >> 8 == directory >> 8
    assert attribute & 0xFF
    assert woods.tree.resolve("/top/m0/sub") >> 40 != directory >> 40


def test_changes_are_counted_when_something_comes_or_goes() -> None:
    changes = Changes()
    registries: list[Registry[Thing]] = [Registry(changes) for _ in range(2)]
    counts = []
    for registry in registries:
        registry.add("m0", Thing())
        counts.append(changes.count)
    registries[0].discard("m0")
    assert [*counts, changes.count] == [1, 2, 3]


def test_identities_of_what_comes_at_run_time_are_never_used_again(woods: Woods) -> None:
    seen = set()
    for _ in range(5):
        woods.add(woods.first, "m0")
        seen.add(woods.tree.resolve("/top/m0"))
        woods.first.discard("m0")
    assert len(seen) == 5


# -- lookup, stat ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/top/absent", errno.ENOENT),
        ("/absent/attribute", errno.ENOENT),
        ("/top/attribute/below", errno.ENOTDIR),
        ("/top/zlink/below", errno.ENOTDIR),
        ("/top/special/below", errno.ENOTDIR),
        ("/top/m0/absent", errno.ENOENT),
        ("/top/m1", errno.ENOENT),
        ("/top/nm0/attribute", errno.ENOTDIR),
        ("/top/nm1", errno.ENOENT),
        ("/top/p0/below", errno.ENOTDIR),
    ],
)
def test_the_way_to_what_is_not_there(woods: Woods, path: str, expected: int) -> None:
    woods.add(woods.first, "m0")
    woods.add(woods.second, "p0")
    assert refusal(lambda: woods.tree.resolve(path)) == expected


@pytest.mark.parametrize("path", ["/top/attribute", "/top/zlink", "/top/nm0", "/top/p0", "/top/special"])
def test_only_directories_are_listed(woods: Woods, path: str) -> None:
    woods.add(woods.first, "m0")
    woods.add(woods.second, "p0")
    node = woods.tree.resolve(path)
    assert refusal(lambda: woods.tree.readdir(node)) == errno.ENOTDIR
    assert refusal(lambda: woods.tree.check_directory(node)) == errno.ENOTDIR


def test_the_root_contains_itself(woods: Woods) -> None:
    woods.add(woods.first, "m0")
    root, top = woods.tree.resolve("/"), woods.tree.resolve("/top")
    assert woods.tree.parent(root) == root
    assert woods.tree.parent(top) == root
    assert woods.tree.parent(woods.tree.resolve("/top/m0")) == top


@pytest.mark.parametrize("path", ["/top", "/top/attribute", "/top/special", "/top/p0", "/top/m0"])
def test_only_links_are_read_as_links(woods: Woods, path: str) -> None:
    woods.add(woods.first, "m0")
    woods.add(woods.second, "p0")
    assert refusal(lambda: woods.tree.readlink(woods.tree.resolve(path))) == errno.EINVAL


@pytest.mark.parametrize(
    ("path", "kind", "mode", "size"),
    [
        ("/top", stat.S_IFDIR, 0o755, 0),
        ("/top/attribute", stat.S_IFREG, 0o644, 4096),
        ("/top/hidden", stat.S_IFREG, 0o444, 4096),
        ("/top/special", stat.S_IFREG, 0o200, 0),
        ("/top/zlink", stat.S_IFLNK, 0o777, 0),
        ("/top/nm0", stat.S_IFLNK, 0o777, 0),
        ("/top/p0", stat.S_IFREG, 0o440, 0),
    ],
)
def test_stat(woods: Woods, path: str, kind: int, mode: int, size: int) -> None:
    woods.add(woods.first, "m0")
    woods.add(woods.second, "p0")
    found = woods.tree.stat(woods.tree.resolve(path))
    assert (stat.S_IFMT(found.mode), stat.S_IMODE(found.mode), found.size) == (kind, mode, size)


class _Odd:
    """A selection of the keys that are odd, such as those of the first and the third member of a registry."""

    def keys(self, _parent: int, _after: int) -> Iterator[int]:
        raise NotImplementedError

    def has(self, key: int) -> bool:
        return key % 2 == 1


def test_keyed_links_are_each_in_the_directory_of_their_own_member() -> None:
    tree = Tree(Journal())
    registry: Registry[Thing] = Registry()
    for name in ("m1", "m2", "m3"):
        registry.add(name, Thing())
    targets = tree.root.fixed("targets").dirs("m", registry)
    tree.root.fixed("holders").dirs("m", registry).fixed("links").links("m", targets, _Odd(), registry, keyed=True)
    for name, other in (("m1", "m3"), ("m3", "m1")):
        directory = tree.resolve(f"/holders/{name}/links")
        (entry,) = tree.readdir(directory)
        assert (entry.name, entry.node) == (name, tree.lookup(directory, name))
        assert list(tree.readdir(directory, entry.next)) == []
        assert tree.readlink(entry.node) == f"../../../targets/{name}"
        assert refusal(partial(tree.lookup, directory, other)) == errno.ENOENT
    directory = tree.resolve("/holders/m2/links")
    assert list(tree.readdir(directory)) == []
    assert refusal(lambda: tree.lookup(directory, "m2")) == errno.ENOENT


@pytest.mark.parametrize("name", ["card05/06.0004", "card05/05.0005", "card05/card06", "card07", "05.0004", "card5"])
def test_names_of_other_directories_and_of_what_does_not_exist(name: str) -> None:
    """Each is a name from which a key can be made, but for the last."""
    tree = Host(load("default")).tree
    assert refusal(lambda: tree.resolve(f"/sys/devices/ap/{name}")) == errno.ENOENT


def test_link_counts_are_two_and_one_for_each_directory_below() -> None:
    shell = Shell(Host(load("default")))
    paths = dict(shell.find("/"))
    for path, found in paths.items():
        below = [other for other, node in paths.items() if posixpath.dirname(other) == path and other != path]
        dirs = sum(stat.S_ISDIR(paths[other].mode) for other in below)
        assert found.nlink == (2 + dirs if stat.S_ISDIR(found.mode) else 1), path


def test_link_counts_follow_the_members(woods: Woods) -> None:
    def nlink() -> int:
        return woods.tree.stat(woods.tree.resolve("/top")).nlink

    assert nlink() == 3
    woods.add(woods.first, "m0")
    woods.add(woods.first, "m1")
    woods.add(woods.second, "p0")
    assert nlink() == 5
    woods.first.discard("m0")
    assert nlink() == 4
    assert woods.tree.stat(woods.tree.resolve("/top/m1")).nlink == 3


@pytest.mark.parametrize("path", ["/top/m0", "/top/m0/attribute", "/top/m0/zlink", "/top/m0/sub", "/top/nm0"])
def test_a_node_whose_member_went_away_is_gone_even_if_the_name_returns(woods: Woods, path: str) -> None:
    woods.add(woods.first, "m0")
    node = woods.tree.resolve(path)
    woods.first.discard("m0")
    woods.tree.deactivate()
    for _ in range(2):
        assert refusal(lambda: woods.tree.stat(node)) == errno.ENOENT
        woods.add(woods.first, "m0")
    assert woods.tree.resolve(path) != node


def test_links_and_attributes_come_and_go(woods: Woods) -> None:
    assert {"zlink", "hidden"} <= set(woods.names())
    link, hidden = woods.tree.resolve("/top/zlink"), woods.tree.resolve("/top/hidden")
    woods.thing.target, woods.thing.shown = None, False
    assert not {"zlink", "hidden"} & set(woods.names())
    for name in ("zlink", "hidden"):
        assert refusal(lambda name=name: woods.tree.resolve(f"/top/{name}")) == errno.ENOENT  # type: ignore[misc]
    assert refusal(lambda: woods.tree.readlink(link)) == errno.ENOENT
    assert refusal(lambda: woods.tree.stat(hidden)) == errno.ENOENT
    assert refusal(lambda: woods.tree.open(hidden, READ)) == errno.ENOENT


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target", "text"),
    [
        ("/sys/bus/ap/devices/card00", "/sys/devices/ap/card00", "../../../devices/ap/card00"),
        ("/sys/bus/ap/devices/00.0029", "/sys/devices/ap/card00/00.0029", "../../../devices/ap/card00/00.0029"),
        ("/sys/bus/ap/drivers/cex4card/card00", "/sys/devices/ap/card00", "../../../../devices/ap/card00"),
        ("/sys/devices/ap/card00/subsystem", "/sys/bus/ap", "../../../bus/ap"),
        ("/sys/devices/ap/card00/driver", "/sys/bus/ap/drivers/cex4card", "../../../bus/ap/drivers/cex4card"),
        ("/sys/devices/ap/card00/00.0029/subsystem", "/sys/bus/ap", "../../../../bus/ap"),
        ("/sys/bus/ap/drivers/cex4card/module", "/sys/module/zcrypt_cex4", "../../../../module/zcrypt_cex4"),
        ("/sys/module/m/drivers/ap:d", "/sys/bus/ap/drivers/d", "../../../bus/ap/drivers/d"),
        ("/sys/class/zcrypt/n", "/sys/devices/virtual/zcrypt/n", "../../devices/virtual/zcrypt/n"),
        ("/a/b", "/a/c", "c"),
        ("/a/b", "/c", "../c"),
        ("/a/b/up", "/a/b", "../b"),
        ("/a/b/top", "/a", "../../a"),
    ],
)
def test_link_text(link: str, target: str, text: str) -> None:
    assert link_text(link, target) == text
    assert posixpath.normpath(posixpath.join(posixpath.dirname(link), text)) == target


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=5).map(lambda names: "/" + "/".join(names))


@given(PATHS, PATHS)
def test_link_texts_lead_to_their_targets(link: str, target: str) -> None:
    text = link_text(link, target)
    assert posixpath.normpath(posixpath.join(posixpath.dirname(link), text)) == target
    assert not text.startswith("/")


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "flags", "expected"),
    [
        ("/top", "r", errno.EISDIR),
        ("/top/m0", "r", errno.EISDIR),
        ("/top/zlink", "r", errno.ELOOP),
        ("/top/nm0", "r", errno.ELOOP),
        ("/top/hidden", "w", errno.EACCES),
        ("/top/hidden", "rw", errno.EACCES),
        ("/top/special", "r", errno.EACCES),
        ("/top/p0", "w", errno.EACCES),
    ],
)
def test_opens_that_are_refused_for_root_as_well(woods: Woods, path: str, flags: str, expected: int) -> None:
    woods.add(woods.first, "m0")
    woods.add(woods.second, "p0")
    node = woods.tree.resolve(path)
    assert refusal(lambda: woods.tree.open(node, Access("r" in flags, "w" in flags, None))) == expected
    record = list(woods.tree.journal)[-1][1]
    assert isinstance(record, Refusal)
    assert (record.operation, record.path, record.errno) == ("open", path, errno.errorcode[expected])


# -- going away --------------------------------------------------------------------------------------------------------


def test_open_files_of_what_is_removed_give_enodev_for_ever(woods: Woods) -> None:
    thing = woods.add(woods.first, "m0")
    file = woods.tree.open(woods.tree.resolve("/top/m0/attribute"), BOTH)
    assert bytes(file.read(0, 10)) == b"x\n"
    woods.first.discard("m0")
    woods.tree.deactivate()
    for _ in range(2):
        assert refusal(lambda: file.read(0, 10)) == errno.ENODEV
        assert refusal(lambda: file.write(b"1")) == errno.ENODEV
        woods.add(woods.first, "m0")
        woods.tree.deactivate()
    assert thing.writes == []
    fresh = woods.tree.open(woods.tree.resolve("/top/m0/attribute"), READ)
    assert bytes(fresh.read(0, 10)) == b"x\n"


def test_an_attribute_that_disappears_takes_its_open_files_along(woods: Woods) -> None:
    hidden = woods.tree.open(woods.tree.resolve("/top/hidden"), READ)
    other = woods.tree.open(woods.tree.resolve("/top/attribute"), READ)
    woods.thing.shown = False
    woods.tree.deactivate()
    woods.thing.shown = True
    assert refusal(lambda: hidden.read(0, 10)) == errno.ENODEV
    assert bytes(other.read(0, 10)) == b"x\n"


def test_at_the_end_of_the_text_a_removed_node_is_noticed_too(woods: Woods) -> None:
    # What was produced before may still be handed out; asking for more asks the node, which is gone.
    woods.add(woods.first, "m0")
    file = woods.tree.open(woods.tree.resolve("/top/m0/attribute"), READ)
    assert bytes(file.read(0, 10)) == b"x\n"
    woods.first.discard("m0")
    woods.tree.deactivate()
    before = woods.tree.journal.last
    assert refusal(lambda: file.read(2, 10)) == errno.ENODEV
    ((_, record),) = woods.tree.journal.since(before)
    assert isinstance(record, Refusal)
    assert (record.operation, record.errno) == ("read", "ENODEV")


def test_files_that_are_closed_are_forgotten(woods: Woods) -> None:
    """They are not looked at when something goes: a host that is used for months opens millions of files."""
    woods.add(woods.first, "m0")
    node = woods.tree.resolve("/top/m0/attribute")
    nothing = calls(woods.tree.deactivate)
    files = [woods.tree.open(node, READ) for _ in range(3)]
    assert calls(woods.tree.deactivate) > nothing
    for file in files:
        file.close()
        file.close()
    assert calls(woods.tree.deactivate) == nothing


# -- permissions -------------------------------------------------------------------------------------------------------


def mode_of(woods: Woods, path: str) -> int:
    return stat.S_IMODE(woods.tree.stat(woods.tree.resolve(path)).mode)


def chmod(woods: Woods, path: str, mode: int) -> None:
    woods.tree.setattr(woods.tree.resolve(path), mode=mode)


def test_chmod_is_kept_until_the_node_goes_away(woods: Woods) -> None:
    woods.add(woods.first, "m0")
    for path in ("/top/m0", "/top/m0/attribute"):
        chmod(woods, path, 0o600)
        woods.tree.deactivate()
        assert mode_of(woods, path) == 0o600
    assert stat.S_ISDIR(woods.tree.stat(woods.tree.resolve("/top/m0")).mode)
    woods.first.discard("m0")
    woods.tree.deactivate()
    woods.add(woods.first, "m0")
    assert (mode_of(woods, "/top/m0"), mode_of(woods, "/top/m0/attribute")) == (0o755, 0o644)


def test_chmod_of_an_attribute_is_forgotten_when_it_disappears(woods: Woods) -> None:
    chmod(woods, "/top/hidden", 0o400)
    woods.thing.shown = False
    woods.tree.deactivate()
    woods.thing.shown = True
    assert mode_of(woods, "/top/hidden") == 0o444


def test_chmod_decides_what_can_be_opened_but_makes_no_functions(woods: Woods) -> None:
    node = woods.tree.resolve("/top/hidden")
    chmod(woods, "/top/hidden", 0o666)
    file = woods.tree.open(node, BOTH)
    assert refusal(lambda: file.write(b"1")) == errno.EIO
    for access in (READ, WRITE):
        woods.tree.open(node, access).close()
    chmod(woods, "/top/hidden", 0)
    for access in (READ, WRITE, BOTH):
        assert refusal(partial(woods.tree.open, node, access)) == errno.EACCES


def test_what_can_be_opened_is_looked_at_once_between_two_uevents(woods: Woods) -> None:
    node = woods.tree.resolve("/top/hidden")
    woods.tree.journal.add(Uevent("add", "/top", "woods", ()))
    first, second = (calls(lambda: woods.tree.open(node, READ)) for _ in range(2))
    assert second < first / 2
    woods.thing.shown = False
    woods.tree.journal.add(Uevent("remove", "/top", "woods", ()))
    assert refusal(lambda: woods.tree.open(node, READ)) == errno.ENOENT


def test_memory_of_what_can_be_opened_is_limited(woods: Woods) -> None:
    remembered = set()
    for number in range(1100):
        woods.add(woods.first, f"m{number}")
        woods.tree.open(woods.tree.resolve(f"/top/m{number}/attribute"), READ).close()
        remembered.add(len(woods.tree.nodes.openings))
    assert max(remembered) == 1024


def test_changed_permissions_are_seen_everywhere_and_may_end(woods: Woods) -> None:
    chmod(woods, "/top/attribute", 0o600)
    assert woods.tree.owned
    assert woods.tree.describe(woods.tree.resolve("/top/attribute")).varies
    assert not woods.tree.describe(woods.tree.resolve("/top/special")).varies
    listed = {entry.name: entry.lasting for entry in woods.tree.readdir(woods.tree.resolve("/top"))}
    modes = {name: stat.S_IMODE(lasting.mode) for name, lasting in listed.items() if lasting}
    assert modes == {"attribute": 0o600, "special": 0o200, "fixed": 0o755}


def test_chown_is_kept_beside_chmod(woods: Woods) -> None:
    node = woods.tree.resolve("/top/attribute")
    assert woods.tree.describe(node).owner == (None, None)
    woods.tree.setattr(node, uid=7)
    woods.tree.setattr(node, gid=8)
    woods.tree.setattr(node, mode=0o100640)
    assert woods.tree.describe(node).owner == (7, 8)
    assert mode_of(woods, "/top/attribute") == 0o640
    assert woods.tree.describe(woods.tree.resolve("/top/hidden")).owner == (None, None)


def test_permissions_of_what_is_gone_cannot_be_changed(woods: Woods) -> None:
    woods.add(woods.first, "m0")
    node = woods.tree.resolve("/top/m0/attribute")
    woods.first.discard("m0")
    woods.tree.deactivate()
    assert refusal(lambda: woods.tree.setattr(node, mode=0o600)) == errno.ENOENT


def test_what_is_permanent_and_what_varies() -> None:
    tree = Tree(Journal())
    tree.root.fixed("still").fixed("below")
    registry: Registry[Thing] = Registry()
    registry.add("m0", Thing())
    top = tree.root.fixed("top", (Attribute("attribute", 0o444, lambda _tree: "a\n"),))
    things = top.dirs("m", registry, (Attribute("attribute", 0o444, lambda _thing: "a\n"),))
    things.fixed("sub")
    top.links("n", things, registry, _Prefixed(registry))
    top.fixed("fixed")
    top.fixed("files").files("p", registry, Special("file", 0o440, lambda *_: TextFile(tree.journal, "/text", str)))
    descriptions = {
        path: tree.describe(tree.resolve(path))
        for path in ("/", "/still", "/still/below", "/top", "/top/attribute", "/top/fixed")
    }
    assert all(found.permanent for found in descriptions.values())
    assert [path for path, found in descriptions.items() if found.varies] == ["/top"]
    paths = ("/top/m0", "/top/m0/sub", "/top/m0/attribute", "/top/nm0", "/top/files/m0")
    members = [tree.describe(tree.resolve(path)) for path in paths]
    assert not any(found.permanent for found in members)
    assert [found.varies for found in members] == [True, True, False, False, False]


def test_what_is_gone_has_no_description(woods: Woods) -> None:
    woods.add(woods.first, "m0")
    node = woods.tree.resolve("/top/m0")
    woods.first.discard("m0")
    woods.tree.deactivate()
    assert refusal(lambda: woods.tree.describe(node)) == errno.ENOENT
    assert refusal(lambda: woods.tree.check_directory(node)) == errno.ENOENT


def test_what_remains_of_what_is_gone(woods: Woods) -> None:
    """What those who still have it are told."""
    woods.add(woods.first, "m0")
    file = Special("file", 0o440, lambda *_: TextFile(woods.tree.journal, "/text", str))
    woods.tree.root.fixed("files").files("m", woods.first, file)
    paths = ("/top/m0", "/top/m0/sub", "/top/m0/attribute", "/top/nm0", "/files/m0")
    nodes = [woods.tree.resolve(path) for path in paths]
    before = [woods.tree.stat(node) for node in nodes]
    woods.first.discard("m0")
    woods.tree.deactivate()
    found = [woods.tree.remains(node) for node in nodes[:4]]
    assert before[0].nlink == 3
    assert [one.stat for one in found] == [before[0]._replace(nlink=2), *before[1:4]]
    assert all(one.varies and not one.permanent for one in found)  # it may come back
    assert refusal(lambda: woods.tree.remains(nodes[4])) == errno.ENOENT  # not of sysfs


def test_fixed_directories_without_a_subject_do_not_exist() -> None:
    tree = Tree(Journal())
    switch: list[object] = []
    parent: Directory = tree.root.fixed("top")
    parent.fixed("sometimes", (Attribute("a", 0o444, lambda _s: "a\n"),), lambda _key: switch[0] if switch else None)
    assert [entry.name for entry in tree.readdir(tree.resolve("/top"))] == []
    assert refusal(lambda: tree.resolve("/top/sometimes")) == errno.ENOENT
    assert tree.stat(tree.resolve("/top")).nlink == 2
    switch.append(object())
    assert [entry.name for entry in tree.readdir(tree.resolve("/top"))] == ["sometimes"]
    assert tree.stat(tree.resolve("/top")).nlink == 3
    node = tree.resolve("/top/sometimes/a")
    switch.clear()
    assert refusal(lambda: tree.stat(node)) == errno.ENOENT
