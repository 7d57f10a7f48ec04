"""Locations of guests in a mount."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from apfs.mounts.table import MountsError, is_apfs


def split(directory: str) -> tuple[str, tuple[str, ...]]:
    """Return the mount that a guest's directory `MOUNT/guests/UUID` is in, and the UUIDs down to it; else itself."""
    mount, uuids = Path(directory), list[str]()
    while mount.parent.name == "guests" and not is_apfs(str(mount)):
        uuids.insert(0, mount.name)
        mount = mount.parent.parent
    return (str(mount), tuple(uuids)) if is_apfs(str(mount)) else (directory, ())


def place(mount: str | Path, *uuids: str) -> Path:
    """Return the directory of a running guest, or of a guest of that one ...

    `MountsError`, which says what to do, if there is none.
    """
    directory = Path(mount)
    for uuid in uuids:
        directory = _below(directory, uuid.lower())
    return directory


def _below(mount: Path, uuid: str) -> Path:
    directory = Path(mount, "guests")
    running = sorted(entry.name for entry in directory.iterdir())
    if uuid in running:
        return directory / uuid
    client = Path(mount, "dev/vfio-ap", uuid)
    if "/" not in uuid and client.is_dir():
        advice = f"`echo 1 > {quote(f'{client}/guest')}` or start a VMM"
        raise MountsError(f"no guest runs on mediated device {uuid}: {advice}", 2)
    known = f"guests run on {', '.join(running)}" if running else "no guest runs there"
    raise MountsError(f"{mount} has no mediated device {uuid}: {known}", 2)
