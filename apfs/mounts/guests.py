"""Where in a mount the guests are."""

from __future__ import annotations

from pathlib import Path

from apfs.mounts.table import MountsError


def place(mount: str | Path, uuid: str) -> Path:
    """Return the directory of a running guest. `MountsError`, which says what to do, if there is none."""
    uuid = uuid.lower()
    directory = Path(mount, "guests")
    running = sorted(entry.name for entry in directory.iterdir())
    if uuid in running:
        return directory / uuid
    client = Path(mount, "dev/vfio-ap", uuid)
    if "/" not in uuid and client.is_dir():
        advice = f"`echo 1 > {client}/guest` or start a VMM"
        raise MountsError(f"no guest runs on mediated device {uuid}: {advice}", 2)
    known = f"guests run on {', '.join(running)}" if running else "no guest runs there"
    raise MountsError(f"{mount} has no mediated device {uuid}: {known}", 2)
