"""Additional device nodes of zcrypt."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from apfs.sysfs.entries import BOTH
from tests.ap.machines import ALL_ONES, BUS, all_but, bits, sample

if TYPE_CHECKING:
    from tests.hosts import Bench

CLASS = "/sys/class/zcrypt"
NODES = "/sys/devices/virtual/zcrypt"
ZERO = bits()
MASKS = ("ioctlmask", "apmask", "aqmask", "admask")


@pytest.fixture
def box() -> Bench:
    return sample()


def test_the_class_has_two_files_for_root_alone(box: Bench) -> None:
    assert box.names(CLASS) == {"create", "destroy"}
    for name in ("create", "destroy"):
        assert stat.S_IMODE(box.stat(f"{CLASS}/{name}").mode) == 0o600
        assert box.shown(f"{CLASS}/{name}") == "EIO"


def test_a_node(box: Bench) -> None:
    assert box.store(f"{CLASS}/create", "my_node\n") == ""
    assert box.names(CLASS) == {"create", "destroy", "my_node"}
    assert box.readlink(f"{CLASS}/my_node") == "../../devices/virtual/zcrypt/my_node"
    node = f"{NODES}/my_node"
    assert box.names(node) == {*MASKS, "dev", "uevent", "subsystem"}
    assert box.readlink(f"{node}/subsystem") == "../../../../class/zcrypt"
    major, minor = box.cat(f"{node}/dev").strip().split(":")
    assert minor == "0"
    assert box.cat(f"{node}/uevent").startswith(f"MAJOR={major}\nMINOR=0\nDEVNAME=my_node\n")
    for name in MASKS:
        assert box.cat(f"{CLASS}/my_node/{name}") == ZERO
        assert stat.S_IMODE(box.stat(f"{node}/{name}").mode) == 0o644
    (event,) = box.heard()
    assert (event.action, event.devpath, event.subsystem) == ("add", "/devices/virtual/zcrypt/my_node", "zcrypt")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("node", "node"),
        ("  node \t\n", "node"),
        ("\n\nnode\n\n", "node"),
        ("two words", "two words"),
        ("x" * 31, "x" * 31),
        ("x" * 32, "x" * 31),
        ("   " + "x" * 40, "x" * 31),
        # What is cut off may leave blanks at the end, which go as well.
        ("x" * 30 + " yyy", "x" * 30),
        ("node\0rest", "node"),
        ("\n", "zcrypt_0"),
        ("   ", "zcrypt_0"),
        ("\0", "zcrypt_0"),
        ("create2", "create2"),
    ],
)
def test_names(box: Bench, text: str, name: str) -> None:
    assert box.store(f"{CLASS}/create", text) == ""
    assert box.names(NODES) == {name}
    assert box.store(f"{CLASS}/create", name) == "EEXIST"
    assert box.store(f"{CLASS}/destroy", f" {name} \n") == ""
    assert "zcrypt" not in box.names("/sys/devices/virtual")


@pytest.mark.parametrize("name", ["create", "destroy"])
def test_names_of_attributes_are_taken(box: Bench, name: str) -> None:
    assert box.store(f"{CLASS}/create", name) == "EEXIST"
    assert box.names(CLASS) == {"create", "destroy"}


@pytest.mark.parametrize("name", ["\x1c", "\x1fx", "x\x85"])
def test_only_white_space_is_stripped(box: Bench, name: str) -> None:
    assert box.store(f"{CLASS}/create", name) == ""
    assert box.names(NODES) == {name}


@pytest.mark.parametrize("name", ["n\xf6d\xe9", "\xe4", "\u4e2d"])
def test_names_are_bytes(box: Bench, name: str) -> None:
    assert box.write(f"{CLASS}/create", name) == len(name.encode())
    assert box.ls(NODES) == [name]
    assert box.readlink(f"{CLASS}/{name}") == f"../../devices/virtual/zcrypt/{name}"
    assert box.read(f"{CLASS}/{name}/uevent").endswith(f"DEVNAME={name}\n".encode())
    assert f"\nDEVNAME={name}\n".encode() in box.read("/ctl/uevents")
    assert [path for path, _ in box.find(NODES)][1] == f"{NODES}/{name}"
    box.write(f"{CLASS}/destroy", name)
    assert not box.exists(f"{CLASS}/{name}")


def test_newlines_in_names_do_not_end_an_event(box: Bench) -> None:
    assert box.store(f"{CLASS}/create", "a\n\nb") == ""
    text = box.cat("/ctl/uevents")
    assert text.startswith(r"add@/devices/virtual/zcrypt/a\x0a\x0ab" + "\n")
    assert text.index("\n\n") == len(text) - 2


def test_an_empty_write_creates_nothing(box: Bench) -> None:
    assert box.store(f"{CLASS}/create", "") == ""
    assert "zcrypt" not in box.names("/sys/devices/virtual")


def test_destroy_needs_a_node(box: Bench) -> None:
    assert box.store(f"{CLASS}/create", "one") == ""
    box.heard()
    for text in ("two", "\n", "ONE", "one two", "create"):
        assert box.store(f"{CLASS}/destroy", text) == "ENOENT"
    assert box.events() == []
    assert box.store(f"{CLASS}/destroy", "one") == ""
    assert box.store(f"{CLASS}/destroy", "one") == "ENOENT"
    assert [(event.action, event.devpath) for event in box.heard()] == [("remove", "/devices/virtual/zcrypt/one")]


def test_minors_are_used_again(box: Bench) -> None:
    for name in ("a", "b", "c"):
        assert box.store(f"{CLASS}/create", name) == ""
    assert box.store(f"{CLASS}/destroy", "b") == ""
    assert box.store(f"{CLASS}/create", "\n") == ""
    assert box.names(NODES) == {"a", "c", "zcrypt_1"}
    assert box.cat(f"{NODES}/zcrypt_1/dev").endswith(":1\n")


def test_a_made_up_name_may_be_taken(box: Bench) -> None:
    assert box.store(f"{CLASS}/create", "zcrypt_1") == ""
    assert box.store(f"{CLASS}/create", "\n") == "EEXIST"
    assert box.names(NODES) == {"zcrypt_1"}


def test_there_are_256_nodes(box: Bench) -> None:
    for number in range(256):
        assert box.store(f"{CLASS}/create", "\n") == "", number
    assert len(box.names(NODES)) == 256
    assert "zcrypt_255" in box.names(NODES)
    box.heard()
    for text in ("\n", "another"):
        assert box.store(f"{CLASS}/create", text) == "ENOSPC"
    # Whether the name is taken is looked at first.
    assert box.store(f"{CLASS}/create", "zcrypt_7") == "EEXIST"
    assert box.events() == []
    assert box.store(f"{CLASS}/destroy", "zcrypt_7") == ""
    assert box.store(f"{CLASS}/create", "another") == ""
    assert box.cat(f"{NODES}/another/dev").endswith(":7\n")


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_a_node_have_the_grammar_of_the_bus_masks(box: Bench, name: str) -> None:
    assert box.store(f"{CLASS}/create", "a") == ""
    assert box.store(f"{CLASS}/create", "b") == ""
    box.heard()
    path = f"{CLASS}/a/{name}"
    for text, shown in (
        ("+0-255", bits(*range(256))),
        ("-5", all_but(5)),
        ("0xffff\n", bits(*range(16))),
        ("-0-7,+200\n", bits(*range(8, 16), 200)),
        ("\n", ZERO),
        ("+255", bits(255)),
    ):
        assert box.store(path, text) == ""
        assert box.cat(path) == shown
    for text in ("+256", "0-5", "0X1", "+5,-", "x y", "0x" + "0" * 65):
        assert box.store(path, text) == "EINVAL"
    assert box.cat(path) == bits(255)
    for other in MASKS:
        assert box.cat(f"{CLASS}/b/{other}") == ZERO
        assert other == name or box.cat(f"{CLASS}/a/{other}") == ZERO
    assert box.cat(f"{BUS}/apmask") == f"{ALL_ONES}\n"
    assert box.events() == []


def test_open_files_of_a_node_end_with_it(box: Bench) -> None:
    assert box.store(f"{CLASS}/create", "a") == ""
    file = box.host.tree.open(box.host.tree.resolve(f"{NODES}/a/apmask"), BOTH)
    assert box.store(f"{CLASS}/destroy", "a") == ""
    assert box.store(f"{CLASS}/create", "a") == ""
    with pytest.raises(Exception, match="ENODEV"):
        file.write(b"+1")
    assert box.cat(f"{NODES}/a/apmask") == ZERO
