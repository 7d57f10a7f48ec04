"""What a sandbox looks like: /sys, /dev, /run and the module tools, put together as arguments of bwrap(1)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from apfs.mounts import environment

if TYPE_CHECKING:
    from apfs.sandbox.seccomp import Nodes

HOST = "/dev/apfs"
"""Where the sandbox shows the whole mount, with its ctl directory."""

# Directories of /sys with both real and emulated entries; all others come from one side only.
MERGED = frozenset(
    (
        "",
        "bus",
        "class",
        "class/misc",
        "dev",
        "devices",
        "devices/virtual",
        "devices/virtual/misc",
        "firmware",
        "kernel",
        "kernel/debug",
        "module",
    )
)
# What a host without the module vfio_ap does not have yet. Links lead there, so that it appears with the module.
LATER = frozenset(
    (
        *("bus/matrix", "bus/mdev", "class/mdev_bus", "class/vfio", "class/vfio-dev", "devices/vfio_ap"),
        *("devices/virtual/misc/vfio", "module/mdev", "module/vfio", "module/vfio_ap"),
        "module/vfio_iommu_type1",
    )
)
# Directories that Linux has only while there is something in them, and a sandbox always: nothing can be bound later.
ALWAYS = {f"devices/virtual/{name}": f"ctl/sandbox/virtual/{name}" for name in ("vfio", "zcrypt")}
# All that the real machine has no part in, or that is not bound as it is.
_APART = LATER | MERGED | ALWAYS.keys() | {"firmware/uv"}
# Directories in which entries of both sides come and go: the mount's `ctl/sandbox` has them with all entries.
MIXED = {"dev/char": "ctl/sandbox/char"}
ZCRYPT_NODES = "ctl/sandbox/zcrypt"
"""Where in a mount the nodes are that are made by writing to /sys/class/zcrypt/create, by their names in sysfs."""
# Directories that are put together anyway are not the real machine's.
_OWN = frozenset(("/dev", "/run", *(f"/sys/{merged}".rstrip("/") for merged in MERGED)))
_MODULE_TOOLS = ("modprobe", "rmmod", "insmod")
_READ_ONLY_TOOLS = ("kmod", "lsmod", "modinfo", "depmod")
TOOLS = "/run/apfs/bin"


@dataclass(slots=True)
class Sandbox:
    """What a user can choose about a sandbox."""

    private_network: bool = True
    keep_id: bool = False
    binds: list[tuple[str, str]] = field(default_factory=list)
    tmpfs: list[str] = field(default_factory=list)
    nodes: Nodes = "devices"


def _entries(directory: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
    except OSError:
        return {}


def _keep(entry: os.DirEntry[str], destination: str) -> list[str]:
    """Return the arguments that show a real entry at its own place again."""
    if entry.is_symlink():
        return ["--symlink", str(Path(entry.path).readlink()), destination]
    return ["--dev-bind-try", entry.path, destination]


def compose_sys(mount: Path) -> list[str]:
    """Return the arguments that put /sys together."""
    arguments = ["--tmpfs", "/sys"]
    for merged in sorted(MERGED):
        emulated = _entries(mount / "sys" / merged)
        for name, entry in _entries(Path("/sys") / merged).items():
            path = f"{merged}/{name}".lstrip("/")
            if name not in emulated and path not in _APART:
                arguments += _keep(entry, f"/sys/{path}")
        for name, entry in emulated.items():
            path = f"{merged}/{name}".lstrip("/")
            if path in MERGED:
                arguments += ["--dir", f"/sys/{path}"]
            elif entry.is_symlink():
                arguments += ["--symlink", str(Path(entry.path).readlink()), f"/sys/{path}"]
            elif path not in ALWAYS:
                arguments += ["--bind", str(mount / MIXED.get(path, f"sys/{path}")), f"/sys/{path}"]
    return arguments + _compose_what_comes_and_goes(mount)


def _compose_what_comes_and_goes(mount: Path) -> list[str]:
    """Return the arguments for what may not be there now."""
    arguments = []
    for path, place in ALWAYS.items():
        arguments += ["--bind", str(mount / place), f"/sys/{path}"]
    for path in sorted(LATER):
        if not os.path.lexists(mount / "sys" / path):
            arguments += ["--symlink", f"{HOST}/sys/{path}", f"/sys/{path}"]
    return arguments


def compose_dev(mount: Path, nodes: Nodes) -> list[str]:
    """Return the arguments that put /dev together: the real one, the emulated nodes, and the mount itself."""
    arguments = ["--tmpfs", "/dev"]
    source = "dev" if nodes == "files" else "ctl/sandbox/dev"
    names = {"vfio", "vfio-ap", "iommu", "apfs"} | _entries(mount / source).keys()
    for name, entry in _entries(Path("/dev")).items():
        if name not in names:
            arguments += _keep(entry, f"/dev/{name}")
    arguments += ["--bind", str(mount), HOST, "--bind", str(mount / "dev/vfio-ap"), "/dev/vfio-ap"]
    for name, entry in _entries(mount / source).items():
        arguments += ["--bind", entry.path, f"/dev/{name}"]
    if nodes != "files":
        for name, entry in _entries(mount / ZCRYPT_NODES).items():
            arguments += ["--bind", entry.path, f"/dev/{name.replace('!', '/')}"]
    if not (mount / source / "vfio").is_dir():
        arguments += ["--symlink", f"{HOST}/{source}/vfio", "/dev/vfio"]
    return arguments


def compose_run(empty: int) -> list[str]:
    """Return the arguments that put /run together: lock and udev are private, the rest is the real one's.

    libudev's monitors turn themselves off unless /run/udev/control exists; `empty` is a descriptor to copy it from.
    A udevd that is started replaces it.
    """
    arguments = ["--tmpfs", "/run"]
    for name, entry in _entries(Path("/run")).items():
        if name not in ("lock", "udev", "apfs"):
            arguments += _keep(entry, f"/run/{name}")
    arguments += ["--perms", "1777", "--dir", "/run/lock", "--dir", "/run/udev/data", "--dir", TOOLS]
    return [*arguments, "--file", str(empty), "/run/udev/control"]


def compose_module_tools() -> list[str]:
    """Return the arguments that let modprobe and its like act on the emulated host and never on the real kernel.

    They are usually links to one program, kmod. A script takes its place, and the real one is kept aside for uses
    that only read.
    """
    script = str(resources.files("apfs.sandbox") / "module-tools.sh")
    arguments = []
    for name in _MODULE_TOOLS:
        arguments += ["--ro-bind", script, f"{TOOLS}/{name}"]
    places = [
        f"{directory}/{name}" for directory in ("/usr/sbin", "/sbin", "/usr/bin", "/bin") for name in _MODULE_TOOLS
    ]
    programs = {os.path.realpath(place) for place in places if os.path.exists(place)}  # noqa: PTH110 -- text wanted
    for program in sorted(programs):
        for name in _READ_ONLY_TOOLS:
            arguments += ["--ro-bind", program, f"{TOOLS}/real/{name}"]
        arguments += ["--ro-bind", script, program]
    return arguments


def arguments(mount: Path, sandbox: Sandbox, empty: int) -> list[str]:
    """Return the arguments of bwrap for a sandbox on a mount; `empty` is a descriptor of an empty file."""
    arguments = ["--die-with-parent", "--dev-bind", "/", "/"]
    arguments += compose_sys(mount) + compose_dev(mount, sandbox.nodes) + compose_run(empty) + compose_module_tools()
    arguments += namespaces(sandbox)
    if Path("/proc/modules").exists():
        arguments += ["--ro-bind", str(mount / "ctl/sandbox/modules"), "/proc/modules"]
    arguments += _make_room([destination for _, destination in sandbox.binds] + sandbox.tmpfs)
    for source, destination in sandbox.binds:
        arguments += ["--bind", source, destination]
    for destination in sandbox.tmpfs:
        arguments += ["--tmpfs", destination]
    arguments += ["--setenv", "SYSTEMD_DEVICE_VERIFY_SYSFS", "0", "--setenv", "APFS_MOUNT", HOST]
    path = os.environ.get("PATH", os.defpath)
    return [*arguments, "--setenv", "PATH", f"{TOOLS}:{path}"]


def namespaces(sandbox: Sandbox) -> list[str]:
    """Return the arguments that make the namespaces, and for ordinary users a user namespace around them."""
    arguments = ["--unshare-pid", "--proc", "/proc", "--cap-add", "ALL"]
    if sandbox.private_network:
        arguments += ["--unshare-net"]
    if not environment.may_unshare(os.geteuid(), environment.capabilities(), network=sandbox.private_network):
        arguments += ["--unshare-user"]
        if not sandbox.keep_id:
            arguments += ["--uid", "0", "--gid", "0"]
    return arguments


def _make_room(destinations: list[str]) -> list[str]:
    """Return the arguments that create places that the real machine does not have.

    bwrap would create them there. Instead the directories that should contain them are put together again.
    """
    arguments, renewed = [], set()
    for destination in destinations:
        parent = Path(destination)
        while not os.path.lexists(parent):
            parent = parent.parent
        if str(parent) != destination.rstrip("/") and str(parent) not in _OWN and parent not in renewed:
            renewed.add(parent)
            arguments += ["--tmpfs", str(parent)]
            for name, entry in _entries(parent).items():
                arguments += _keep(entry, f"{parent}/{name}")
    return arguments
