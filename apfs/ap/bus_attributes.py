"""The attributes of `/sys/bus/ap`, and the module parameters below `/sys/module/ap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apfs.ap.mask import Mask, ap_parse_bitmap_str
from apfs.ap.qinfo import FACILITIES
from apfs.kernel.device import BUS_ATTRIBUTES as DRIVER_CORE_ATTRIBUTES
from apfs.kernel.kstrtox import kstrtobool, kstrtoul, scan_d, scan_i, scan_llu
from apfs.sysfs.entries import Attribute

if TYPE_CHECKING:
    from collections.abc import Callable

    from apfs.ap.bus import ApBus
    from apfs.kernel.profile import Profile


def ap_domain_show(bus: ApBus) -> str:
    """Default domain for requests that do not name one, -1 if there is none."""
    return f"{bus.default_domain}\n"


def ap_domain_store(bus: ApBus, text: str) -> None:
    """Set the default domain. EINVAL outside 0..ap_max_domain_id, and if `aqmask` does not reserve it."""
    bus.choose_domain(scan_i(text, bus.profile))


def _qci_mask(bus: ApBus, mask: Mask) -> str:
    return f"{mask.hex256()}\n" if bus.heeds_qci else "not supported\n"


def ap_control_domain_mask_show(bus: ApBus) -> str:
    """Control domains of the host as of the last scan."""
    return _qci_mask(bus, bus.qci.control_domains)


def ap_usage_domain_mask_show(bus: ApBus) -> str:
    """Usage domains of the host as of the last scan."""
    return _qci_mask(bus, bus.qci.domains)


def ap_adapter_mask_show(bus: ApBus) -> str:
    """Adapters of the host as of the last scan."""
    return _qci_mask(bus, bus.qci.adapters)


def ap_interrupts_show(bus: ApBus) -> str:
    """Whether AP interrupts are in use."""
    return f"{int(bus.machine.interrupts)}\n"


def config_time_show(bus: ApBus) -> str:
    """Seconds between scans."""
    return f"{bus.config_time}\n"


def config_time_store(bus: ApBus, text: str) -> None:
    """Change the scan period and restart the timer. EINVAL outside 5..120 seconds."""
    bus.set_config_time(scan_d(text, bus.profile))


def poll_thread_show(bus: ApBus) -> str:
    """Whether the poll thread runs."""
    return f"{int(bus.poll_thread)}\n"


def poll_thread_store(bus: ApBus, text: str) -> None:
    """Start or stop the poll thread; starting it has no effect where interrupts are in use."""
    kernel = bus.profile
    bus.set_poll_thread(on=kstrtobool(text, kernel) if kernel.poll_kstrto else bool(scan_d(text, kernel)))


def poll_timeout_show(bus: ApBus) -> str:
    """Period of the poll timer in nanoseconds."""
    return f"{bus.poll_timeout}\n"


def poll_timeout_store(bus: ApBus, text: str) -> None:
    """Change the period of the poll timer and start it. EINVAL above 120 s."""
    kernel = bus.profile
    bus.set_poll_timeout(kstrtoul(text) if kernel.poll_kstrto else scan_llu(text, kernel))


def ap_max_domain_id_show(bus: ApBus) -> str:
    """Highest domain number of this machine."""
    return f"{bus.max_domain}\n"


def ap_max_adapter_id_show(bus: ApBus) -> str:
    """Highest adapter number of this machine."""
    return f"{bus.max_adapter}\n"


def apmask_show(bus: ApBus) -> str:
    """Adapters whose queues are reserved for the host's drivers."""
    return f"{bus.reservation.apmask.hex256()}\n"


def apmask_store(bus: ApBus, text: str) -> None:
    """Change the mask and rebind. EINVAL for bad text or while overrides exist, EBUSY if vfio_ap uses a queue."""
    bus.change_apmask(ap_parse_bitmap_str(text, bus.reservation.apmask, bus.profile))


def aqmask_show(bus: ApBus) -> str:
    """Domains whose queues are reserved for the host's drivers."""
    return f"{bus.reservation.aqmask.hex256()}\n"


def aqmask_store(bus: ApBus, text: str) -> None:
    """Change the mask and rebind, as `apmask_store` does."""
    bus.change_aqmask(ap_parse_bitmap_str(text, bus.reservation.aqmask, bus.profile))


def scans_show(bus: ApBus) -> str:
    """Bus scans so far."""
    return f"{bus.scans}\n"


def scans_store(bus: ApBus, _text: str) -> None:
    """Scan the bus before the write returns, whatever is written."""
    bus.scan()


def bindings_show(bus: ApBus) -> str:
    """Number of queues with a driver, number of all queues, and whether all are bound."""
    bound, total, complete = bus.bindings()
    return f"{bound}/{total} (complete)\n" if complete else f"{bound}/{total}\n"


def bindings_complete_count_show(bus: ApBus) -> str:
    """BINDINGS=complete events so far."""
    return f"{bus.bindings_event.count}\n"


def features_show(bus: ApBus) -> str:
    """Return the facilities that QCI reports; `-` if QCI is missing, empty if it has none."""
    if not bus.heeds_qci:
        return "-\n"
    names = " ".join(name for name in FACILITIES if name in bus.qci.facilities)
    return f"{names}\n" if names else ""


BUS_ATTRIBUTES = (
    *DRIVER_CORE_ATTRIBUTES,
    Attribute("ap_domain", 0o644, ap_domain_show, ap_domain_store),
    Attribute("ap_control_domain_mask", 0o444, ap_control_domain_mask_show),
    Attribute("ap_usage_domain_mask", 0o444, ap_usage_domain_mask_show),
    Attribute("ap_adapter_mask", 0o444, ap_adapter_mask_show),
    Attribute("ap_interrupts", 0o444, ap_interrupts_show),
    Attribute("config_time", 0o644, config_time_show, config_time_store),
    Attribute("poll_thread", 0o644, poll_thread_show, poll_thread_store),
    Attribute("poll_timeout", 0o644, poll_timeout_show, poll_timeout_store),
    Attribute("ap_max_domain_id", 0o444, ap_max_domain_id_show),
    Attribute("ap_max_adapter_id", 0o444, ap_max_adapter_id_show),
    Attribute("apmask", 0o644, apmask_show, apmask_store),
    Attribute("aqmask", 0o644, aqmask_show, aqmask_store),
    Attribute("scans", 0o644, scans_show, scans_store, kernels=lambda kernel: kernel.scans_writable),
    Attribute("scans", 0o444, scans_show, kernels=lambda kernel: not kernel.scans_writable),
    Attribute("bindings", 0o444, bindings_show),
    Attribute(
        "bindings_complete_count",
        0o444,
        bindings_complete_count_show,
        kernels=lambda kernel: kernel.bindings_complete_count,
    ),
    Attribute("features", 0o444, features_show, kernels=lambda kernel: kernel.bus_features),
)


def _parameters(readable: int, pools: int, kernels: Callable[[Profile], bool]) -> tuple[Attribute, ...]:
    """Return the parameters with these modes. What they were at boot is unset."""
    return (
        Attribute("domain", readable, ap_domain_show, kernels=kernels),
        Attribute("poll_thread", readable, lambda _bus: "0\n", kernels=kernels),
        Attribute(
            "useirq",
            readable,
            lambda _bus: "1\n",
            kernels=lambda kernel: kernels(kernel) and kernel.useirq_parameter,
        ),
        Attribute(
            "msgpool_min_items",
            pools,
            lambda _bus: "8\n",
            kernels=lambda kernel: kernels(kernel) and kernel.ap_pool_parameter,
        ),
        Attribute("apmask", readable, lambda _bus: "(null)\n", kernels=kernels),
        Attribute("aqmask", readable, lambda _bus: "(null)\n", kernels=kernels),
    )


MODULE_PARAMETERS = (
    *_parameters(0o444, 0o400, lambda kernel: kernel.parameters_readable),
    *_parameters(0o440, 0o440, lambda kernel: not kernel.parameters_readable),
)
