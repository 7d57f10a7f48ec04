"""Kernel releases: a table of all visible differences between the kernels that a system can run.

Each field of `Profile` is a row of the table: the name of a feature, the release that added or removed it, and its
effect. Code that differs checks the feature in the profile, never the release number. Values without a release are
those of the newest one. docs/kernels.md is generated from this table.

A release means its first version, such as 6.12.0. Stable and distribution kernels include many later changes:
`Profile.of("5.14", {"ap_config": True})` is such a kernel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

PROFILES = ("5.14", "5.15", "6.1", "6.5", "6.8", "6.12", "6.18", "7.1", "7.2")
"""The releases that are tested, oldest first. The last one is the default."""
OLDEST, NEWEST = PROFILES[0], PROFILES[-1]
_RELEASES = {5: range(14, 20), 6: range(20), 7: range(3)}
"""Minor numbers by major number of all releases between the oldest and the newest."""

Value = bool | int | str


def _since(release: str, effect: str, *, after: str = "") -> Any:  # noqa: ANN401 -- as dataclasses.field
    """Return a feature that a release brought; with `after` it may have been any release after that one."""
    return _row({OLDEST: False, release: True}, effect, after=after)


def _until(release: str, effect: str, *, after: str = "") -> Any:  # noqa: ANN401 -- as dataclasses.field
    """Return a feature that is missing from a release on; `after` as for `_since`."""
    return _row({OLDEST: True, release: False}, effect, after=after)


def _row(steps: dict[str, Value], effect: str, *, after: str = "") -> Any:  # noqa: ANN401 -- as dataclasses.field
    """Return a feature with a value from each of some releases on; `after` is about the last of them."""
    return field(default=list(steps.values())[-1], metadata={"steps": steps, "effect": effect, "after": after})


class FeatureError(ValueError):
    """An unknown feature, or a value that a feature cannot have."""

    def __init__(self, feature: str, why: str) -> None:
        super().__init__(why)
        self.feature = feature


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A release of Linux, with its features."""

    version: str = NEWEST

    # -- AP bus ------------------------------------------------------------------------------------

    useirq_parameter: bool = _since("5.16", "`/sys/module/ap/parameters` has `useirq`.")
    hwrng_seed_parameter: bool = _until("6.2", "`/sys/module/zcrypt/parameters` has `hwrng_seed`.")
    ap_pool_parameter: bool = _since("6.18", "`/sys/module/ap/parameters` has `msgpool_min_items`.", after="6.14")
    zcrypt_pool_parameter: bool = _since(
        "6.18", "`/sys/module/zcrypt/parameters` has `mempool_threshold`.", after="6.14"
    )
    parameters_readable: bool = _since("7.0", "Modes of the module parameters are 0444, of pools 0400; before, 0440.")
    scans_writable: bool = _since("5.18", "A write to `/sys/bus/ap/scans` triggers a scan; before, mode 0444.")
    bus_features: bool = _since("6.4", "The AP bus has the attribute `features`.")
    qci_by_flags: bool = _since(
        "6.10",
        "QCI without any facility counts as missing: `not supported` in the masks, and `-` in `features`; before, "
        "its masks are shown, and `features` is empty.",
    )
    bindings_complete_count: bool = _since("6.19", "The AP bus has the attribute `bindings_complete_count`.")
    bindings_event: Literal["probe", "scan", "armed", "armed_register"] = _row(
        {"5.14": "probe", "6.9": "scan", "6.10": "armed", "6.11": "armed_register"},
        "When BINDINGS=complete is sent while every queue has a driver: after the first scan and each successful probe "
        "(`probe`), after every scan (`scan`), after a scan once until new hardware or a probe (`armed`), then also "
        "when a driver registers (`armed_register`).",
    )
    mask_uevents: bool = _since("5.19", "A changed mask sends a uevent of `/devices/ap` with APMASK or AQMASK.")
    mask_number_long: bool = _since(
        "6.10", "Numbers in relative masks have 64 bits; before, 32, so that `+4294967301` is `+5`."
    )
    numbers_saturate: bool = _since(
        "7.2", "Numbers from 2^64 on count as 2^64 - 1 in masks, `config_time` and the like; before, modulo 2^64."
    )
    poll_kstrto: bool = _since(
        "6.4",
        "`poll_thread` accepts a boolean, `poll_timeout` any base and 0; before, decimal numbers followed by "
        "anything; 0 nanoseconds was EINVAL.",
    )
    kstrtobool_tf: bool = _since("5.19", "Booleans may start with t, T, f or F.", after="5.17")
    kstrtobool_ed: bool = _since("6.18", "Booleans may start with e, E, d or D.", after="6.14")
    node_admask: bool = _since("5.18", "Nodes of `/sys/class/zcrypt/create` have the attribute `admask`.")

    # -- cards -------------------------------------------------------------------------------------

    cex8: bool = _since("5.18", "AP type 14 is a CEX8; before, a CEX7 if QACT is installed, otherwise no card.")
    chkstop: bool = _since("5.18", "Cards and queues have the attribute `chkstop`, and the bus tracks the state.")
    online_checkstop: bool = _since(
        "6.7", "A check-stopped device has `online` 0 and refuses 1; before, only a deconfigured one."
    )
    depth_plus_one: bool = _since("6.19", "`depth` is the field of the TAPQ word plus one; before, the field.")
    card_functions: Literal["raw", "noslcf", "slcf"] = _row(
        {"5.14": "raw", "6.8": "noslcf", "6.17": "slcf"},
        "Contents of a card's `ap_functions` and of v2 streams: all 32 bits as when it appeared (`raw`), bits 0 "
        "to 15 without the SLCF bit (`noslcf`) or with it (`slcf`).",
        after="6.14",
    )
    card_change_16bit: bool = _since(
        "6.4", "A card is created again if one of its facility bits 0 to 15 changes; before, one of 0 to 31."
    )
    serialnr_any_domain: bool = _since(
        "7.0", "`serialnr` of a CCA card queries any domain; before, the default domain of the bus."
    )
    info_cache: bool = _until(
        "6.18",
        "While a CCA card, its queues, or an EP11 card are offline, their last answers are shown.",
        after="6.14",
    )
    op_modes_full: bool = _since("6.7", "`op_modes` has SIGG-IMPORT, SIGG, FIPS2021 and FIPS2024.")

    # -- queues ------------------------------------------------------------------------------------

    mkvps_asym: bool = _since("5.19", "`mkvps` of a CCA queue has three lines for ASYM.")
    queue_ap_functions: bool = _since("6.4", "Queues have the attribute `ap_functions`.")
    driver_override: bool = _since("6.19", "Queues have the attribute `driver_override`.")
    interrupt_live: bool = _since(
        "6.7", "`interrupt` queries the hardware; before, it shows the state when vfio_ap was bound to the queue."
    )
    operating_at_creation: bool = _since(
        "6.6", "`request_count` of a new queue is 0 even without zcrypt; before, `-` until zcrypt was bound to it."
    )
    resume_initialises: bool = _since(
        "6.6",
        "A queue that is configured again, or no longer check-stopped, is initialised; before, it waits for the next "
        "poll to be reset, and keeps its association.",
    )
    se_attributes: bool = _since("6.4", "In a Secure Execution guest queues have `se_bind` and `se_associate`.")
    se_cca_excluded: bool = _since(
        "6.12",
        "In a Secure Execution guest CCA queues have no `se_bind` and `se_associate`, and zcrypt does not use them; "
        "before, both files read `-`.",
        after="6.10",
    )
    se_bind_state_checked: bool = _since(
        "6.8",
        "`se_bind` and `se_associate` check the bind state first, binding ends an association, and unbinding "
        "operates the queue; before, they only check whether it is idle.",
    )
    se_usable: Literal["any", "bound_here", "bound"] = _row(
        {"5.14": "any", "6.7": "bound_here", "6.8": "bound"},
        "Which queues of EP11 cards and accelerators zcrypt uses in a Secure Execution guest: any, those that were "
        "bound with `se_bind` since their last reset (`bound_here`), or those that the hardware reports as bound.",
    )
    se_uevents: bool = _since("7.2", "`se_bind` and `se_associate` send uevents with SE_BIND and SE_ASSOC.")

    # -- vfio_ap -----------------------------------------------------------------------------------

    hotplug: bool = _since(
        "6.0",
        "Matrices can be changed while a guest runs, also to the same value, and removed queues are reset; "
        "before, EBUSY, and guests get everything that is assigned.",
    )
    overprovisioning: bool = _since(
        "6.0",
        "Any queue that the masks do not reserve can be assigned; before, it has to be bound to vfio_ap "
        "(EADDRNOTAVAIL).",
    )
    guest_matrix: bool = _since("6.0", "Mediated devices have the attribute `guest_matrix`.")
    ap_config: bool = _since("6.10", "Mediated devices have the attribute `ap_config`.")
    matrix_features: bool = _since("6.12", "The matrix device has the attribute `features`.")
    mask_veto: bool = _since("6.0", "Masks cannot take queues that are assigned (EBUSY).")
    veto_all: bool = _since(
        "6.19", "The veto covers all queues of the new adapters or domains; before, those in the other mask."
    )
    config_changes: Literal["ignored", "last_missed", "followed"] = _row(
        {"5.14": "ignored", "6.0": "last_missed", "7.2": "followed"},
        "How guests see the loss of adapters and domains of the host: not at all (`ignored`); except the loss of their "
        "last adapter or domain, and of control domains (`last_missed`); completely (`followed`).",
    )
    added_type_checked: bool = _since("6.4", "New adapters older than CEX4 are not given to guests.")
    filter_whole: bool = _since(
        "6.8", "The filter checks the whole matrix; before, only additions, so that filtered adapters can come back."
    )
    reset_filtered: bool = _since("6.8", "Queues that are filtered out are reset.")
    reset_model: Literal["busy", "short", "wait"] = _row(
        {"5.14": "busy", "6.3": "short", "6.6": "wait"},
        "How a reset ends: EBUSY for queues that are not available (`busy`), EIO for them, nothing for deconfigured "
        "ones (`short`), EIO for every response code other than 0, recorded for each queue (`wait`).",
    )
    passable: Literal["clean", "deconfigured", "checkstopped"] = _row(
        {"5.14": "clean", "6.6": "deconfigured", "6.9": "checkstopped"},
        "The worst outcome of a reset with which a queue can be passed to a guest.",
    )
    debug_area: bool = _since("5.19", "vfio_ap has a debug area, `s390dbf/vfio_ap` in debugfs.", after="5.17")
    queue_status: bool = _since("5.17", "Queues of vfio_ap have the attribute `status`.")
    status_in_use_exact: bool = _since(
        "6.8", "`status` is `in use` for queues that the guest has; before, for all that are assigned to its device."
    )
    sharing_logged: Literal["never", "holder", "writer"] = _row(
        {"5.14": "never", "6.0": "holder", "6.18": "writer"},
        "Which device prefixes the line in the kernel log about a queue that is assigned elsewhere.",
        after="6.14",
    )
    irqs: int = _row(
        {"5.14": 0, "6.5": 1, "6.15": 2},
        "Interrupts of the VFIO device: none, a request to release it, and a change of the configuration.",
    )
    request_clears_guest: bool = _since(
        "6.18", "A request to release the device also signals a changed configuration.", after="6.14"
    )
    open_without_kvm: bool = _until("5.19", "A device can be opened without a VM; from then on EINVAL.", after="5.17")

    # -- mediated devices --------------------------------------------------------------------------

    mdev_driver: Literal["vfio_mdev", "vfio_ap_mdev"] = _row(
        {"5.14": "vfio_mdev", "5.15": "vfio_ap_mdev"}, "The driver of mediated devices, of module mdev or vfio_ap."
    )
    create_limit: Literal["EPERM", "EUSERS"] = _row(
        {"5.14": "EPERM", "6.1": "EUSERS"}, "Error of `create` if all instances are taken."
    )
    mdev_class_at_load: bool = _since(
        "6.4", "`/sys/class/mdev_bus` exists while mdev is loaded; before, from the first parent on."
    )
    iommu_group_name: bool = _since("5.16", "IOMMU groups of mediated devices have a `name`.")

    misc_minors: Literal["low", "high"] = _row(
        {"5.14": "low", "6.18": "high"},
        "Minor numbers of the misc devices `z90crypt` and `iommu`: below 128, or above 255.",
        after="6.14",
    )

    # -- VFIO --------------------------------------------------------------------------------------

    vfio_virqfd_module: bool = _until("6.2", "The module `vfio_virqfd` exists.")
    vfio_dev_class: bool = _since("6.1", "`vfio-dev/vfioK` and `/sys/class/vfio-dev` exist.")
    vfio_cdev: bool = _since("6.6", "VFIO devices have a node, `/dev/vfio/devices/vfioK`, and the attribute `dev`.")
    iommufd: bool = _since("6.2", "`/dev/iommu` exists.")
    iommufd_last: int = _row(
        {"5.14": 0x88, "6.6": 0x8D, "6.12": 0x8E, "6.18": 0x94},
        "Number of the last request that an iommufd knows; others fail with ENOTTY.",
        after="6.14",
    )
    iommufd_access_needed: bool = _since(
        "6.12", "IOMMU_IOAS_MAP and IOMMU_IOAS_COPY without READABLE and WRITEABLE fail with EINVAL.", after="6.10"
    )
    iommufd_unmap_nothing: bool = _since(
        "6.18", "VFIO_IOMMU_UNMAP_DMA of an iommufd succeeds where nothing is mapped; before, ENOENT.", after="6.14"
    )
    iommufd_length_first: bool = _since(
        "6.19", "IOMMU_IOAS_MAP_FILE checks the length before the descriptor; before, EBADF comes first."
    )
    feature_ioctl: bool = _since(
        "5.19", "The ioctl VFIO_DEVICE_FEATURE is known; before, EOPNOTSUPP, so that nothing migrates.", after="5.17"
    )
    unknown_feature: Literal["EINVAL", "ENOTTY"] = _row(
        {"5.14": "EINVAL", "6.18": "ENOTTY"}, "Error of VFIO_DEVICE_FEATURE for unknown features.", after="6.14"
    )
    region_info: Literal["EOPNOTSUPP", "EINVAL"] = _row(
        {"5.14": "EOPNOTSUPP", "6.19": "EINVAL"}, "Error of VFIO_DEVICE_GET_REGION_INFO: there are no regions."
    )
    dma_logging: bool = _since("6.1", "The features 6, 7, 8 are known, and fail with ENOTTY for vfio_ap.")
    mig_data_size: bool = _since("6.2", "The feature 9, VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, is known.")
    precopy_info_v2: bool = _since("7.1", "The feature 12 is known, and fails with EINVAL without PRE_COPY.")
    caps_aligned: bool = _since("6.6", "Capabilities of VFIO_IOMMU_GET_INFO are padded to 8 bytes: 72, before 68.")
    update_vaddr: bool = _until("6.3", "The extension VFIO_UPDATE_VADDR is reported, and addresses can be invalidated.")
    group_name_first: bool = _since(
        "5.19", "VFIO_GROUP_GET_DEVICE_FD checks the name first; before, the container.", after="5.17"
    )
    attach_pasid: bool = _since(
        "6.18", "The flag PASID of ATTACH and DETACH is known, and fails with EOPNOTSUPP; before, EINVAL.", after="6.14"
    )

    @classmethod
    def of(cls, version: str, changes: Mapping[str, object] | None = None) -> Profile:
        """Return the profile of a release, with changed features. `ValueError`, `FeatureError` for what is unknown."""
        number = _number(version)
        values: dict[str, Any] = {row.name: row.value(number) for row in rows().values()}
        for name, value in (changes or {}).items():
            if name not in values:
                raise FeatureError(name, f"no feature {name!r} of kernels: `apfs scenario kernels` shows them")
            choices = rows()[name].choices
            if not any(value is choice or (value == choice and type(value) is type(choice)) for choice in choices):
                told = ", ".join(map(spelled, choices))
                raise FeatureError(name, f"{name}: expected one of {told}, not {value!r}")
            values[name] = value
        return cls(version=version, **values)

    def differences(self, other: Profile) -> dict[str, Value]:
        """Return the features that are not as in another profile, with their values here."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in rows())
        return {name: here for name, here, there in pairs if here != there}

    def changes(self) -> dict[str, Value]:
        """Return the features that are not as in the release."""
        return self.differences(Profile.of(self.version))

    def features(self) -> dict[str, Value]:
        """Return all features with their values."""
        return {name: getattr(self, name) for name in rows()}

    def __str__(self) -> str:
        """Return the release and its changes, for people."""
        told = differing(self.changes())
        return f"{self.version} with {', '.join(told)}" if told else self.version


class Row(NamedTuple):
    """A feature, as the table has it."""

    name: str
    effect: str
    """What it changes."""
    steps: tuple[tuple[str, Value], ...]
    """Its values, each with the release from which on it holds."""
    after: str
    """If the release of the last step is not known exactly: it is later than this one."""

    @property
    def choices(self) -> tuple[Value, ...]:
        """The values that it can have."""
        return tuple(dict.fromkeys(value for _, value in self.steps))

    def value(self, number: tuple[int, int]) -> Value:
        """Return its value in a release."""
        return [value for release, value in self.steps if _number(release) <= number][-1]


@cache
def rows() -> dict[str, Row]:
    """Return the table, by the names of the features."""
    return {
        one.name: Row(one.name, one.metadata["effect"], tuple(one.metadata["steps"].items()), one.metadata["after"])
        for one in fields(Profile)
        if one.metadata
    }


@cache
def _number(version: str) -> tuple[int, int]:
    """Return major and minor number of a release. `ValueError` unless it is one of those that there are profiles of."""
    found = re.fullmatch(r"(\d)\.(\d{1,2})", version, re.ASCII)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if number[1] not in _RELEASES.get(number[0], ()) or version != f"{number[0]}.{number[1]}":
        raise ValueError(f"expected a release of Linux from {OLDEST} to {NEWEST}, not {version!r}")
    return number


def releases() -> list[str]:
    """Return all releases that there are profiles of, oldest first."""
    return [f"{major}.{minor}" for major, minors in _RELEASES.items() for minor in minors]


def spelled(value: Value) -> str:
    """Return a value as scenarios have it."""
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def differing(features: Mapping[str, Value]) -> list[str]:
    """Return features for people, each in a few words."""
    return [name if value is True else f"{name} = {spelled(value)}" for name, value in features.items()]


DEFAULT = Profile()
"""The newest release, as it is."""
