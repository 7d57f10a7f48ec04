"""Listings of names without attributes.

pyfuse3 supports only READDIRPLUS: each name comes with the attributes of its node, and the kernel caches both. This
costs an inode for each name, 1.6 GiB after a walk through 65,536 queues. And the timeout is that of the listing, so the
kernel forgets a name that a lookup had made cacheable. The kernel does neither for a name with node id 0: such a name
is listed, with inode number and type, and looked up when it is used. pyfuse3 has one property for both node id and
inode number, so the node id is set to 0 without its knowledge, at an offset that is found by a search.

Measured with the 65,536 links of /sys/bus/ap/devices, as multiples of the time of a minimal C server that sends all
attributes: `ls -f` 2.0 instead of 8.2, `ls -l` 1.9 instead of 5.2.
"""

from __future__ import annotations

import ctypes
import struct
import warnings

import pyfuse3
from pyfuse3 import EntryAttributes, InodeT, ModeT

# Numbers that occur nowhere else in an object.
_NODE_ID, _GENERATION = 0x5EED_0F_1D_0DE5, 0x5EED_0F_6E_0E4A
_U64 = struct.Struct("=Q")


def _node_id_offset() -> int | None:
    """Return where in an `EntryAttributes` its node id is, None if that is not certain.

    The object contains a struct fuse_entry_param, which begins with the node id and the generation. The inode number,
    which pyfuse3 sets together with the node id, is in the struct stat behind them (fuse_lowlevel.h). So one number
    must be found twice, and the generation once, immediately behind one of the two.
    """
    entry = EntryAttributes()
    entry.st_ino = InodeT(_NODE_ID)
    entry.generation = _GENERATION
    content = ctypes.string_at(id(entry), type(entry).__basicsize__)
    node_id, generation = _U64.pack(_NODE_ID), _U64.pack(_GENERATION)
    if (content.count(node_id), content.count(generation)) != (2, 1) or node_id + generation not in content:
        return None
    return content.index(node_id + generation)


class _Name:
    """The reply for names of one type, used for one after the other."""

    def __init__(self, file_type: int, offset: int) -> None:
        self.entry = EntryAttributes()
        self.entry.st_mode = ModeT(file_type)
        self.node_id = ctypes.c_uint64.from_address(id(self.entry) + offset)


class BareNames:
    """Replies for names without attributes."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._names: dict[int, _Name] = {}

    def reply(self, inode: InodeT, file_type: int) -> EntryAttributes:
        """Return what `readdir_reply` sends about the name of a node of this type (S_IFMT)."""
        name = self._names.get(file_type)
        if name is None:
            name = self._names[file_type] = _Name(file_type, self._offset)
        name.entry.st_ino = inode
        name.node_id.value = 0
        return name.entry


def bare_names() -> BareNames | None:
    """Return the replies for names without attributes; warn and return None if this pyfuse3 is not as expected."""
    offset = _node_id_offset()
    if offset is None:
        warnings.warn(
            f"the node id is not where it used to be in pyfuse3 {pyfuse3.__version__}: listings will take longer",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return BareNames(offset)
