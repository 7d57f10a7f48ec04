"""What this process may do, by its user and capabilities: capabilities(7)."""

from __future__ import annotations

from pathlib import Path

from apfs.mounts import table

SYS_ADMIN, NET_ADMIN = 1 << 21, 1 << 12
"""Bits of CAP_SYS_ADMIN and CAP_NET_ADMIN in a capability set."""


def status_of_process() -> dict[str, str]:
    """Return the fields of /proc/self/status. `MountsError` without /proc."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
        raise table.no_proc() from None
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def capabilities() -> int:
    """Return the effective capabilities of this process."""
    return int(status_of_process()["CapEff"], 16)


def may_unshare(uid: int, effective: int, *, network: bool) -> bool:
    """Whether this user may make namespaces with these capabilities; otherwise they need a user namespace around them.

    Root in a container often has CAP_SYS_ADMIN but not the CAP_NET_ADMIN that a loopback device takes. bwrap does not
    use capabilities of users other than root.
    """
    needed = SYS_ADMIN | NET_ADMIN if network else SYS_ADMIN
    return uid == 0 and effective & needed == needed
