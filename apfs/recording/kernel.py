"""Recognising a machine's kernel from its sysfs: a release, and the features that differ from it.

The version that the kernel reports is ignored: that of a distribution kernel says little, and a mount has none.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from apfs.ap.names import Apqn, card_name, parse_card_name
from apfs.kernel.profile import DEFAULT, PROFILES, Profile, releases
from apfs.kernel.uuid import is_uuid
from apfs.recording.reader import BUS, DEVICES, MATRIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apfs.kernel.profile import Value
    from apfs.recording.reader import Reader

_USUAL_DEPTHS = {7: False, 8: True}
_LOW_MINORS = 128
_CCA_KEYS = re.compile("AES (NEW|CUR|OLD)")
_INTERRUPTS = {"Interrupts enabled.": True, "Interrupts disabled.": False}
_BIND_STATE = 0xC000
"""Bits of `ap_functions` that only queues have."""


def recognise(files: Reader) -> Profile:
    """Return the kernel whose visible features are nearest to those of the machine, with what differs.

    Of releases that look the same it is one that is tested, and the newest of these.
    """
    seen = dict(_seen(files))

    def fitness(kernel: Profile) -> tuple[int, bool]:
        return sum(getattr(kernel, name) == value for name, value in seen.items()), kernel.version in PROFILES

    best = DEFAULT
    for version in reversed(releases()):
        kernel = Profile.of(version)
        if fitness(kernel) > fitness(best):
            best = kernel
    return Profile.of(best.version, {name: value for name, value in seen.items() if getattr(best, name) != value})


def _seen(files: Reader) -> Iterator[tuple[str, Value]]:
    """Yield the features that can be told, with their values."""
    bus = files.names(BUS)
    yield "bus_features", "features" in bus
    yield "bindings_complete_count", "bindings_complete_count" in bus
    parameters = files.names("/sys/module/ap/parameters")
    if parameters:
        yield "useirq_parameter", "useirq" in parameters
        yield "ap_pool_parameter", "msgpool_min_items" in parameters
    if files.names("/sys/module/zcrypt"):
        zcrypt = files.names("/sys/module/zcrypt/parameters")
        yield "hwrng_seed_parameter", "hwrng_seed" in zcrypt
        yield "zcrypt_pool_parameter", "mempool_threshold" in zcrypt
    _, _, minor = (files.text("/sys/devices/virtual/misc/z90crypt/dev") or "").partition(":")
    if minor.isdecimal():
        yield "misc_minors", "low" if int(minor) < _LOW_MINORS else "high"
    yield from _seen_of_cards(files)
    yield from _seen_of_vfio(files)


def _seen_of_cards(files: Reader) -> Iterator[tuple[str, Value]]:
    cards = [f"{DEVICES}/{name}" for name in files.names(DEVICES) if parse_card_name(name) is not None]
    queues = [f"{card}/{name}" for card in cards for name in files.names(card) if Apqn.parse(name)]
    if cards:
        yield "chkstop", "chkstop" in files.names(cards[0])
        depths = {_USUAL_DEPTHS.get(files.number(f"{card}/depth") or 0) for card in cards}
        for known in depths - {None} if len(depths) == 1 else ():
            yield "depth_plus_one", bool(known)
        if any((files.number(f"{card}/ap_functions", 16) or 0) & _BIND_STATE for card in cards):
            yield "card_functions", "raw"
    names = next(filter(None, map(files.names, queues)), None)  # one that has not just gone
    if names:
        yield "driver_override", "driver_override" in names
        yield "queue_ap_functions", "ap_functions" in names
    one_of_each = {apqn.apid: path for apqn, path in _bound(files, "cex4queue")}
    # Whoever records keys says so if they cannot be read.
    asked = (files.text(f"{path}/mkvps", refusal=errno.EACCES) or "" for path in one_of_each.values())
    keys = next(filter(_CCA_KEYS.match, asked), None)
    if keys:
        yield "mkvps_asym", "ASYM" in keys


def _bound(files: Reader, driver: str) -> Iterator[tuple[Apqn, str]]:
    """Yield the queues that a driver has, with their directories."""
    for name in files.names(f"{BUS}/drivers/{driver}"):
        apqn = Apqn.parse(name)
        if apqn:
            yield apqn, f"{DEVICES}/{card_name(apqn.apid)}/{apqn}"


def _interrupts_of_nobody(files: Reader, queues: Iterable[str]) -> str | None:
    """Return what all queues of vfio_ap that no guest has say of interrupts, None if they differ or there are none.

    On kernels that do not ask they say what they said while zcrypt had them. Single ones that zcrypt never had say
    something else on all kernels.
    """
    idle = [queue for queue in queues if files.text(f"{queue}/status") in (None, "assigned", "unassigned")]
    said = {files.text(f"{queue}/interrupt") for queue in idle}
    return said.pop() if len(said) == 1 else None


def _seen_of_vfio(files: Reader) -> Iterator[tuple[str, Value]]:
    matrix, classes = files.names(MATRIX), files.names("/sys/class")
    if "iommu" in files.names("/sys/class/misc"):  # without it the module may just not be loaded
        yield "iommufd", True
    if "vfio" in classes:
        yield "vfio_dev_class", "vfio-dev" in classes
    if matrix:
        yield "matrix_features", "features" in matrix
    for name in {"vfio_mdev", "vfio_ap_mdev"}.intersection(files.names("/sys/bus/mdev/drivers")):
        yield "mdev_driver", name
    queues = [path for _, path in _bound(files, "vfio_ap")]
    if queues:
        yield "queue_status", "status" in files.names(queues[0])
    interrupts = _interrupts_of_nobody(files, queues)
    if interrupts in _INTERRUPTS:
        yield "interrupt_live", not _INTERRUPTS[interrupts]
    uuid = next(filter(is_uuid, matrix), None)
    if uuid:
        names = files.names(f"{MATRIX}/{uuid}")
        yield "guest_matrix", "guest_matrix" in names
        yield "ap_config", "ap_config" in names
        group = files.names(f"{MATRIX}/{uuid}/iommu_group")
        if group:
            yield "iommu_group_name", "name" in group
        for device in files.names(f"{MATRIX}/{uuid}/vfio-dev"):
            yield "vfio_cdev", "dev" in files.names(f"{MATRIX}/{uuid}/vfio-dev/{device}")
