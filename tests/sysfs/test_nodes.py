"""Device nodes in a tree, and directories that are made to be bound to another place."""

from __future__ import annotations

import errno
import stat

import pytest

from apfs.errors import KernelError
from apfs.journal.log import Journal
from apfs.sysfs.entries import BOTH, Link, Node, Stat
from apfs.sysfs.members import Registry
from apfs.sysfs.tree import Tree


@pytest.fixture
def tree() -> Tree:
    tree = Tree(Journal())
    members: Registry[int] = Registry()
    members.add("b7", 7)
    top = tree.root.fixed("top", (Node("a", 0o600, lambda _subject: (10, 1)),))
    top.files("b", members, Node("member", 0o640, lambda minor: (240, minor)))
    things = tree.root.fixed("things").dirs("b", members)
    shown = top.fixed("shown", (Link("entry", lambda _subject: "/sys/devices/x"),), shown_at="/sys/dev/char")
    shown.links("b", things, members)
    return tree


def test_a_node_has_a_type_a_mode_and_a_number(tree: Tree) -> None:
    assert tree.stat(tree.resolve("/top/a")) == Stat(stat.S_IFCHR | 0o600, 0, 1, (10, 1))
    assert tree.stat(tree.resolve("/top/b7")) == Stat(stat.S_IFCHR | 0o640, 0, 1, (240, 7))


def test_listings_tell_the_type(tree: Tree) -> None:
    listed = {entry.name: entry.type for entry in tree.readdir(tree.resolve("/top"))}
    assert listed == {"a": stat.S_IFCHR, "b7": stat.S_IFCHR, "shown": stat.S_IFDIR}


@pytest.mark.parametrize("path", ["/top/a", "/top/b7"])
def test_a_node_has_nothing_to_open(tree: Tree, path: str) -> None:
    with pytest.raises(KernelError) as refused:
        tree.open(tree.resolve(path), BOTH)
    assert refused.value.errno == errno.ENXIO


def test_a_node_keeps_what_chmod_and_chown_made_of_it(tree: Tree) -> None:
    node = tree.resolve("/top/b7")
    tree.setattr(node, mode=0o666, gid=6)
    assert tree.stat(node) == Stat(stat.S_IFCHR | 0o666, 0, 1, (240, 7))
    assert tree.describe(node).owner == (None, 6)


def test_links_are_made_for_the_place_where_they_are_shown(tree: Tree) -> None:
    assert tree.readlink(tree.resolve("/top/shown/entry")) == "../../devices/x"
    assert tree.readlink(tree.resolve("/top/shown/b7")) == "../../../things/b7"
    assert tree.path(tree.resolve("/top/shown/b7")) == "/top/shown/b7"
