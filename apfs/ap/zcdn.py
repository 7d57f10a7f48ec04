"""Additional zcrypt device nodes: `/sys/class/zcrypt/create` and `destroy` (the zcdn part of zcrypt_api.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from apfs.ap.mask import NONE, Mask, ap_parse_bitmap_str
from apfs.errors import KernelError
from apfs.kernel.device import SYS, UEVENT, emit
from apfs.kernel.kstrtox import SPACE
from apfs.sysfs.entries import Attribute, Link
from apfs.sysfs.members import Registry

if TYPE_CHECKING:
    from apfs.journal.log import Journal
    from apfs.journal.records import Keys
    from apfs.kernel.profile import Profile
    from apfs.sysfs.entries import Entry
    from apfs.sysfs.tree import Tree

MAJOR = 240
_NODES = 256
_NAME_MAX = 31


class ZcdnNode:
    """A node with restrictions of its own, `/sys/devices/virtual/zcrypt/<name>` (struct zcdn_device)."""

    subsystem = "zcrypt"

    def __init__(self, journal: Journal, profile: Profile, name: str, minor: int) -> None:
        self.journal = journal
        self.profile = profile
        self.name = name
        self.minor = minor
        self.masks = dict.fromkeys(("ioctlmask", "apmask", "aqmask", "admask"), NONE)

    @property
    def path(self) -> str:
        """Directory in sysfs."""
        return f"{SYS}/devices/virtual/zcrypt/{self.name}"

    def uevent_keys(self) -> Keys:
        """Return device number and name."""
        return (("MAJOR", str(MAJOR)), ("MINOR", str(self.minor)), ("DEVNAME", self.name.replace("!", "/")))


class ZcdnClass:
    """The class `zcrypt` with its nodes."""

    def __init__(self, tree: Tree, profile: Profile) -> None:
        self._tree = tree
        self._profile = profile
        self.nodes: Registry[ZcdnNode] = Registry()

    def create(self, name: str) -> None:
        """Make a node; an empty name becomes `zcrypt_<minor>`. EEXIST if the name is taken, ENOSPC after 256."""
        name = name.replace("/", "!")  # as the driver core does
        if name and self.nodes.get(name):
            raise KernelError(errno.EEXIST, f"there is a node {name} already")
        used = {node.minor for node in self.nodes}
        minor = next((minor for minor in range(_NODES) if minor not in used), None)
        if minor is None:
            raise KernelError(errno.ENOSPC, f"there are {_NODES} nodes already")
        name = name or f"zcrypt_{minor}"
        if self.nodes.get(name):
            raise KernelError(errno.EEXIST, f"there is a node {name} already")
        if any(name == attribute.name for attribute in CLASS_ATTRIBUTES):
            raise KernelError(errno.EEXIST, f"the class has an attribute {name}, so there can be no link of that name")
        if name in (".", ".."):
            raise KernelError(errno.EINVAL, f"{name!r} cannot be the name of a directory")
        node = ZcdnNode(self._tree.journal, self._profile, name, minor)
        self.nodes.add(name, node)
        emit(node, "add")

    def destroy(self, name: str) -> None:
        """Remove a node. ENOENT if there is none of that name."""
        node = self.nodes.get(name)
        if node is None:
            raise KernelError(errno.ENOENT, f"there is no node {name!r}")
        self.nodes.discard(name)
        self._tree.deactivate()
        emit(node, "remove")


class Numbers:
    """The names of nodes by device number."""

    def __init__(self, nodes: Registry[ZcdnNode]) -> None:
        self._nodes = nodes

    def name(self, key: int) -> str:
        """Return `major:minor`."""
        node = self._nodes.subject(key)
        return "(removed)" if node is None else f"{MAJOR}:{node.minor}"

    def find(self, name: str) -> int | None:
        """Return the key of the node of that number, None if there is none."""
        return next((key for key in self._nodes.keys(0) if self.name(key) == name), None)


def _stripped(text: str) -> str:
    return text.lstrip(SPACE)[:_NAME_MAX].rstrip(SPACE)


CLASS_ATTRIBUTES = (
    Attribute("create", 0o600, None, lambda nodes, text: nodes.create(_stripped(text))),
    Attribute("destroy", 0o600, None, lambda nodes, text: nodes.destroy(_stripped(text))),
)


def _mask_attribute(name: str) -> Attribute:
    def show(node: ZcdnNode) -> str:
        mask: Mask = node.masks[name]
        return f"{mask.hex256()}\n"

    def store(node: ZcdnNode, text: str) -> None:
        node.masks[name] = ap_parse_bitmap_str(text, node.masks[name], node.profile)

    return Attribute(name, 0o644, show, store, kernels=lambda kernel: name != "admask" or kernel.node_admask)


NODE_ATTRIBUTES: tuple[Entry, ...] = (
    UEVENT,
    Link("subsystem", lambda _node: f"{SYS}/class/zcrypt"),
    Attribute("dev", 0o444, lambda node: f"{MAJOR}:{node.minor}\n"),
    *map(_mask_attribute, ("ioctlmask", "apmask", "aqmask", "admask")),
)
