"""apfs: an IBM Z host with crypto cards, emulated as a FUSE file system.

The names here are the public interface. They are imported on first use, so importing `apfs` itself needs neither
pyfuse3 nor trio and takes no time.
"""

from __future__ import annotations

TYPE_CHECKING = False
"""As `typing` has it. That module takes as long to import as Python takes to start."""

if TYPE_CHECKING:
    from apfs.errors import KernelError
    from apfs.host import Host
    from apfs.journal import records
    from apfs.journal.history import History
    from apfs.mounts.table import MountsError
    from apfs.scenario.model import ScenarioError
    from apfs.scenario.reader import load
    from apfs.testing.files import Shell
    from apfs.testing.mounted import MountedHost, Pair

__version__ = "0.1.0"

_HOMES = {
    "History": "apfs.journal.history",
    "Host": "apfs.host",
    "KernelError": "apfs.errors",
    "MountedHost": "apfs.testing.mounted",
    "MountsError": "apfs.mounts.table",
    "Pair": "apfs.testing.mounted",
    "ScenarioError": "apfs.scenario.model",
    "Shell": "apfs.testing.files",
    "load": "apfs.scenario.reader",
    "records": "apfs.journal",
}
__all__ = [
    "History",
    "Host",
    "KernelError",
    "MountedHost",
    "MountsError",
    "Pair",
    "ScenarioError",
    "Shell",
    "load",
    "records",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 -- commands such as `apfs --version` need no such names

    home = import_module(_HOMES[name])
    found: object = getattr(home, name, None) or import_module(f"{_HOMES[name]}.{name}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
