"""The trees of guests inside that of their host."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

import pytest

from apfs.errors import KernelError
from apfs.sysfs.entries import READ, WRITE
from apfs.sysfs.nodes import Nodes
from tests.hosts import M1, M2, refused

from .guests import on, rescan, started
from .test_nested import passing

if TYPE_CHECKING:
    from collections.abc import Callable

GUEST = f"/guests/{M1}"


def test_the_host_shows_all_of_a_guest() -> None:
    host = started()
    guest = on(host)
    assert host.ls("/guests") == [M1]
    assert host.ls(GUEST) == guest.ls("/") == ["ctl", "dev", "guests", "sys"]
    shown = {path.removeprefix(GUEST): found for path, found in host.find(f"{GUEST}/sys")}
    assert shown == dict(guest.find("/sys"))
    assert stat.S_ISDIR(host.stat(GUEST).mode)
    assert host.stat("/guests").nlink == 3


def test_links_lead_to_places_of_the_guest() -> None:
    host = started()
    assert host.cat(f"{GUEST}/sys/bus/ap/devices/card05/type") == "CEX8P\n"
    assert host.readlink(f"{GUEST}/sys/bus/ap/devices/05.0004") == "../../../devices/ap/card05/05.0004"
    assert host.ls(f"{GUEST}/sys/..") == host.ls(GUEST)
    assert host.ls(f"{GUEST}/sys/../..") == [M1]


def test_without_guests_the_directory_is_empty() -> None:
    host = started()
    host.run_guest(M1, 0)
    assert host.ls("/guests") == []
    with refused("ENOENT"):
        host.ls(GUEST)


def test_what_is_written_there_is_written_to_the_guest() -> None:
    host = started()
    host.echo("-5", f"{GUEST}/sys/bus/ap/apmask")
    assert on(host).cat("/sys/bus/ap/bindings") == "2/4\n"
    with refused("EINVAL"):
        host.echo("nonsense", f"{GUEST}/sys/bus/ap/apmask")
    assert not host.refusals()
    refusal = on(host).refusals()[0]
    assert (refusal.path, refusal.errno) == ("/sys/bus/ap/apmask", "EINVAL")
    with refused("EACCES"):
        host.echo(1, f"{GUEST}/sys/bus/ap/bindings")
    assert [refusal.path for refusal in on(host).refusals()] == ["/sys/bus/ap/apmask", "/sys/bus/ap/bindings"]


def test_nodes_of_different_trees_differ() -> None:
    host = started(adapters=(5,))
    host.create(M2)
    host.run_guest(M2)
    tree = host.host.tree
    nodes = {tree.resolve(f"{place}/sys/bus/ap/apmask") for place in ("", GUEST, f"/guests/{M2}")}
    assert len(nodes) == 3
    assert max(nodes) < 1 << 63
    for node in nodes:
        assert tree.path(node) == "/sys/bus/ap/apmask"


def test_what_was_open_in_a_guest_is_gone_with_it() -> None:
    host = started()
    tree = host.host.tree
    node = tree.resolve(f"{GUEST}/sys/bus/ap/apmask")
    directory = tree.resolve(f"{GUEST}/sys/bus")
    reading, writing = tree.open(node, READ), tree.open(node, WRITE)
    host.run_guest(M1, 0)
    host.run_guest(M1)
    for attempt in (lambda: reading.read(0, 10), lambda: writing.write(b"-5")):
        with pytest.raises(KernelError) as caught:
            attempt()
        assert caught.value.errno == errno.ENODEV
    reading.close()
    writing.close()
    gone: list[Callable[[], object]] = [
        lambda: tree.stat(node),
        lambda: tree.readlink(node),
        lambda: tree.open(node, READ),
        lambda: tree.stat(directory),
        lambda: tree.readdir(directory),
        lambda: tree.check_directory(directory),
        lambda: tree.lookup(directory, "ap"),
        lambda: tree.remains(node),
    ]
    for request in gone:
        with refused("ENOENT"):
            request()


def test_the_tree_of_a_guest_that_ended_is_forgotten() -> None:
    host = started()
    tree = host.host.tree
    node = tree.resolve(f"{GUEST}/sys/bus/ap/apmask")
    kinds = set(tree.nodes.kinds)
    assert tree.nodes.tree_of(node, tree) is host.host.guest(M1).tree
    host.run_guest(M1, 0)
    assert tree.nodes.tree_of(node, tree) is tree
    left = set(tree.nodes.kinds)
    host.run_guest(M1)
    assert len(left) < len(kinds) == len(tree.nodes.kinds)


def test_opened_again_after_names_have_changed_in_a_guest() -> None:
    host = started()
    tree = host.host.tree
    node = tree.resolve(f"{GUEST}/sys/devices/ap/card06/type")
    tree.open(node, READ).close()
    host.put(M1, "unassign_adapter", 6)
    rescan(on(host))
    with refused("ENOENT"):
        tree.open(node, READ)


def test_permissions_are_changed_in_one_guest_only() -> None:
    host = started()
    tree = host.host.tree
    node = tree.resolve(f"{GUEST}/sys/bus/ap/apmask")
    tree.setattr(node, mode=0o600)
    assert host.stat(f"{GUEST}/sys/bus/ap/apmask").mode == stat.S_IFREG | 0o600
    assert host.stat("/sys/bus/ap/apmask").mode == stat.S_IFREG | 0o644
    host.run_guest(M1, 0)
    assert not tree.owned


def test_nothing_of_a_guest_is_permanent() -> None:
    tree = started().host.tree
    assert tree.describe(tree.resolve("/sys/bus/ap")).permanent
    for path in ("", "/sys", "/sys/bus/ap", "/ctl/console"):
        assert not tree.describe(tree.resolve(GUEST + path)).permanent


def test_whoever_serves_the_host_hears_of_what_happens_in_guests() -> None:
    host = started()
    changes = host.host.tree.nodes.changes
    before = changes.count
    on(host).echo("-5", "/sys/bus/ap/apmask")
    assert changes.count > before


def test_guests_of_guests_are_below_them() -> None:
    host = started()
    passing(host)
    inner = f"{GUEST}/guests/{M2}"
    assert host.ls(f"{inner}/sys/devices/ap") == ["card05", "uevent"]
    host.run_guest(M1, 0)
    assert not host.exists(inner)


def test_numbers_of_trees_are_given_out_again_after_all_others() -> None:
    nodes: Nodes[str] = Nodes()
    assert [nodes.admit("tree") for _ in range(3)] == [0, 1, 2]
    nodes.dismiss(1)
    assert [nodes.admit("tree") for _ in range(32765)][-1] == 32767
    assert nodes.admit("tree") == 1
