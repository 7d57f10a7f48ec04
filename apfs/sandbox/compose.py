"""The contents of a sandbox: /sys, /dev and /run from both machines, and the arguments of bwrap(1)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from apfs.mounts import credentials

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
# What a host without the module vfio_ap does not have yet, all in merged directories. Links lead there, so that it
# appears with the module.
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
MODULE_TOOLS = ("modprobe", "rmmod", "insmod")
_READ_ONLY_TOOLS = ("kmod", "lsmod", "modinfo", "depmod")
TOOLS = "/run/apfs/bin"
GATE = "/run"
"""Where bwrap mounts an empty file system for the file that it waits for; it is taken away before it goes on."""


@dataclass(slots=True)
class Sandbox:
    """What a user can choose about a sandbox."""

    private_network: bool = True
    keep_id: bool = False
    binds: list[tuple[str, str]] = field(default_factory=list)
    tmpfs: list[str] = field(default_factory=list)
    nodes: Nodes = "devices"


class Bind(NamedTuple):
    """A file or directory, shown at a place too."""

    source: str
    """Its path below the mount if it is emulated, else below the real directory that the tree covers."""
    place: str
    emulated: bool
    is_dir: bool


class Link(NamedTuple):
    """A symbolic link."""

    text: str
    place: str


class Directory(NamedTuple):
    """A new directory."""

    place: str
    mode: int = 0o755


class Empty(NamedTuple):
    """A new file without content."""

    place: str


class Cover(NamedTuple):
    """A file, shown in place of another too, read-only."""

    source: str
    """Its path below the mount if it is emulated, else that on the real machine, without links."""
    place: str
    emulated: bool = False


Step = Bind | Link | Directory | Empty | Cover


class Tree(NamedTuple):
    """A directory whose entries are put together, in this order."""

    place: str
    steps: list[Step]


def _entries(directory: Path) -> dict[str, os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
    except OSError:
        return {}


def _text(link: os.DirEntry[str]) -> str:
    return os.readlink(link.path)  # noqa: PTH115 -- text wanted


def _keep(entry: os.DirEntry[str], tree: str, path: str) -> Step:
    """Return the step that shows a real entry at its own place again."""
    if entry.is_symlink():
        return Link(_text(entry), f"{tree}/{path}")
    return Bind(path, f"{tree}/{path}", emulated=False, is_dir=entry.is_dir())


def _show(entry: os.DirEntry[str], source: str, place: str) -> Bind:
    """Return the step that shows an emulated entry."""
    return Bind(source, place, emulated=True, is_dir=entry.is_dir())


def _compose_sys(mount: Path) -> Iterator[Step]:
    """Yield the merged directories with what is there now, and what may come."""
    for merged in sorted(MERGED):
        yield from _merge(mount, merged)
    for path, source in ALWAYS.items():
        yield Bind(source, f"/sys/{path}", emulated=True, is_dir=True)


def _merge(mount: Path, merged: str) -> Iterator[Step]:
    """Yield the entries of a directory of /sys that has some of both sides."""
    emulated = _entries(mount / "sys" / merged)
    for name, entry in _entries(Path("/sys") / merged).items():
        path = f"{merged}/{name}".lstrip("/")
        if name not in emulated and path not in _APART:
            yield _keep(entry, "/sys", path)
    for name, entry in emulated.items():
        path = f"{merged}/{name}".lstrip("/")
        if path in MERGED:
            yield Directory(f"/sys/{path}")
        elif entry.is_symlink():
            yield Link(_text(entry), f"/sys/{path}")
        elif path not in ALWAYS:
            yield _show(entry, MIXED.get(path, f"sys/{path}"), f"/sys/{path}")
    for path in sorted(LATER):
        directory, _, name = path.rpartition("/")
        if directory == merged and name not in emulated:
            yield Link(f"{HOST}/sys/{path}", f"/sys/{path}")


def _compose_dev(mount: Path, nodes: Nodes) -> Iterator[Step]:
    """Yield the real nodes, the emulated ones, and the mount itself."""
    source = "dev" if nodes == "files" else "ctl/sandbox/dev"
    emulated = _entries(mount / source)
    names = {"vfio", "vfio-ap", "iommu", "apfs"} | emulated.keys()
    for name, entry in _entries(Path("/dev")).items():
        if name not in names:
            yield _keep(entry, "/dev", name)
    yield Bind(".", HOST, emulated=True, is_dir=True)
    if "vfio-ap" not in emulated:
        yield Bind("dev/vfio-ap", "/dev/vfio-ap", emulated=True, is_dir=True)
    for name, entry in emulated.items():
        yield _show(entry, f"{source}/{name}", f"/dev/{name}")
    if nodes != "files":
        yield from _compose_zcrypt_nodes(mount, names | _entries(Path("/dev")).keys())
    if "vfio" not in emulated:
        yield Link(f"{HOST}/{source}/vfio", "/dev/vfio")


def _compose_zcrypt_nodes(mount: Path, taken: Iterable[str]) -> Iterator[Step]:
    """Yield nodes of zcrypt with the directories that their names ask for, in a /dev in which some names are taken.

    As in devtmpfs, a node that would be where something else is, or below what is no directory, is just not there.
    """
    is_directory = dict.fromkeys(taken, False)
    for name, entry in _entries(mount / ZCRYPT_NODES).items():
        parts = name.split("!")
        *above, place = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        if {"", ".", ".."} & set(parts) or place in is_directory:
            continue
        if not all(is_directory.get(directory, True) for directory in above):
            continue
        yield from (Directory(f"/dev/{directory}") for directory in above if directory not in is_directory)
        is_directory |= {**dict.fromkeys(above, True), place: False}
        yield _show(entry, f"{ZCRYPT_NODES}/{name}", f"/dev/{place}")


def _compose_run() -> Iterator[Step]:
    """Yield lock and udev, which are private, the directory of module tools, and the rest, which is the real one's.

    libudev's monitors turn themselves off unless /run/udev/control exists. A udevd that is started replaces it.
    """
    for name, entry in _entries(Path("/run")).items():
        if name not in ("lock", "udev", "apfs"):
            yield _keep(entry, "/run", name)
    yield Directory("/run/lock", 0o1777)
    for place in ("/run/udev", "/run/udev/data", "/run/apfs", TOOLS, f"{TOOLS}/real"):
        yield Directory(place)
    yield Empty("/run/udev/control")


def _compose_module_tools() -> Iterator[Step]:
    """Yield what lets modprobe and its like act on the emulated host and never on the real kernel.

    They are usually links to one program, kmod, and go by their names. A script takes its place, and the real one is
    kept aside for uses that only read.
    """
    script = os.path.realpath(Path(__file__).with_name("module-tools.sh"))
    first, *others = MODULE_TOOLS
    yield from (Empty(f"{TOOLS}/{first}"), Cover(script, f"{TOOLS}/{first}"))
    yield from (Link(first, f"{TOOLS}/{name}") for name in others)
    places = [
        f"{directory}/{name}" for directory in ("/usr/sbin", "/sbin", "/usr/bin", "/bin") for name in MODULE_TOOLS
    ]
    programs = {os.path.realpath(place) for place in places if os.path.exists(place)}  # noqa: PTH110 -- text wanted
    first, *others = _READ_ONLY_TOOLS
    if programs:
        yield Empty(f"{TOOLS}/real/{first}")
        yield from (Link(first, f"{TOOLS}/real/{name}") for name in others)
    for program in sorted(programs):
        yield from (Cover(program, f"{TOOLS}/real/{first}"), Cover(script, program))


def trees(mount: Path, nodes: Nodes) -> list[Tree]:
    """Return the directories that are put together for a sandbox on a mount."""
    modules = [Cover("ctl/sandbox/modules", "/proc/modules", emulated=True)] if Path("/proc/modules").exists() else []
    return [
        Tree("/sys", [*_compose_sys(mount), *modules]),
        Tree("/dev", list(_compose_dev(mount, nodes))),
        Tree("/run", [*_compose_run(), *_compose_module_tools()]),
    ]


def arguments(sandbox: Sandbox, gate: int) -> list[str]:
    """Return the arguments of bwrap for a sandbox. Where it waits for `gate`, the trees are put together."""
    arguments = ["--die-with-parent", "--dev-bind", "/", "/", *namespaces(sandbox)]
    arguments += ["--tmpfs", GATE, "--file", str(gate), f"{GATE}/gate"]
    arguments += _make_room([destination for _, destination in sandbox.binds] + sandbox.tmpfs)
    for source, destination in sandbox.binds:
        arguments += ["--bind", source, destination]
    for destination in sandbox.tmpfs:
        arguments += ["--tmpfs", destination]
    arguments += ["--setenv", "SYSTEMD_DEVICE_VERIFY_SYSFS", "0", "--setenv", "APFS_MOUNT", HOST]
    return [*arguments, "--setenv", "PATH", f"{TOOLS}:{search_path(sandbox)}"]


def search_path(sandbox: Sandbox) -> str:
    """Return where the command is searched for besides `TOOLS`: in PATH, and if it is root, among programs for root.

    Ordinary users, who are root inside, do not have those directories in their PATH on every distribution.
    """
    path = os.environ.get("PATH", os.defpath)
    roots = () if sandbox.keep_id else ("/usr/local/sbin", "/usr/sbin", "/sbin")
    return ":".join([path, *(directory for directory in roots if directory not in path.split(":"))])


def namespaces(sandbox: Sandbox) -> list[str]:
    """Return the arguments that make the namespaces, and for ordinary users a user namespace around them."""
    arguments = ["--unshare-pid", "--proc", "/proc", "--cap-add", "ALL"]
    if sandbox.private_network:
        arguments += ["--unshare-net"]
    if not credentials.may_unshare(os.geteuid(), credentials.capabilities(), network=sandbox.private_network):
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
                is_link = entry.is_symlink()
                arguments += ["--symlink", _text(entry)] if is_link else ["--dev-bind-try", entry.path]
                arguments.append(f"{parent}/{name}")
    return arguments
