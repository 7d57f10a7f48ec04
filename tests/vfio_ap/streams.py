"""Migration streams for tests: the host they fit, the words on them, and the log read back into what it says."""

import json
import re
from collections.abc import Sequence
from typing import Any

from apfs.errors import KernelError
from apfs.sysfs.entries import BOTH
from apfs.testing.files import Shell
from apfs.vfio_ap.migration.revision import MigrationFile
from tests.hosts import M1, Bench, refused

CCA8 = 0x928000000E540307
EP11_7 = 0x868000000D540307
HOST = f"""
[qci]
domains = [0x04, 0x47]
[[card]]
adapter = 5
type = "CEX8C"
[[card]]
adapter = 6
type = "CEX7P"
tapq = {{ apsc = 1 }}
[masks]
apmask = "0x0"
[[mdev]]
uuid = "{M1}"
adapters = [5, 6]
domains = [0x04, 0x47]
control_domains = [0x04, 0x47]
guest = true
"""
APQNS = (0x0504, 0x0547, 0x0604, 0x0647)
ENTRIES = tuple(zip((CCA8, CCA8, EP11_7, EP11_7), APQNS, strict=True))

Entry = tuple[int, int]
Event = tuple[str, ...]


def stream(entries: Sequence[Entry] = ENTRIES, count: int | None = None) -> bytes:
    """Return a stream, made by hand."""
    parts = [(len(entries) if count is None else count).to_bytes(4, "big") + bytes(4)]
    parts += [word.to_bytes(8, "big") + apqn.to_bytes(2, "big") + bytes(6) for word, apqn in entries]
    return b"".join(parts)


STREAM = stream()


def v4_stream(entries: Sequence[Entry] = ENTRIES, count: int | None = None) -> bytes:
    """Return a stream of revision 4, made by hand."""
    return stream(entries, count)[:8] + bytes(8) + stream(entries, count)[8:]


def next_stream(
    entries: Sequence[Entry] = ENTRIES, control_domains: Sequence[int] = (0x04, 0x47), count: int | None = None
) -> bytes:
    """Return a stream of the newest state, made by hand."""
    mask = sum(1 << 255 - domain for domain in set(control_domains)).to_bytes(32, "big")
    old = stream(entries, count)
    return bytes.fromhex("7666617000000001") + old[:8] + mask + old[8:]


def host(driver: str, text: str = HOST) -> Bench:
    """Return a host whose driver has some revision."""
    return Bench(f'driver = "{driver}"\n{text}')


def patched(*changes: tuple[int, str], of: bytes = STREAM) -> bytes:
    """Return a stream with bytes replaced: offset and hex digits of each change."""
    data = bytearray(of)
    for offset, digits in changes:
        new = bytes.fromhex(digits)
        data[offset : offset + len(new)] = new
    return bytes(data)


def state(bench: Bench, *names: str, uuid: str = M1) -> None:
    """Walk through migration states."""
    for name in names:
        bench.echo(name, f"/dev/vfio-ap/{uuid}/migration_state")


def transfer(bench: Bench, uuid: str = M1) -> MigrationFile:
    """Open the file of the session."""
    tree = bench.host.tree
    file = tree.open(tree.resolve(f"/dev/vfio-ap/{uuid}/data_stream"), BOTH)
    assert isinstance(file, MigrationFile)
    return file


def check_without_migration(bench: Bench) -> None:
    """Check that whatever of migration can be asked or set is ENOTTY."""
    client = f"/dev/vfio-ap/{M1}"
    for name in ("migration_state", "migration_flags", "data_size"):
        with refused("ENOTTY"):
            bench.cat(f"{client}/{name}")
    for text in ("STOP", "nonsense"):
        with refused("ENOTTY"):
            bench.echo(text, f"{client}/migration_state")
    with refused("ENOTTY"):
        transfer(bench)


def write(bench: Bench, *pieces: bytes, uuid: str = M1) -> list[int | str]:
    """Write a stream in pieces, through one open file, and return what each write gave: a count or an errno."""
    file = transfer(bench, uuid)
    results: list[int | str] = []
    for piece in pieces:
        try:
            results.append(file.write(piece))
        except KernelError as error:
            results.append(error.name)
    file.close()
    return results


def deliver(bench: Bench, *pieces: bytes) -> list[int | str]:
    """Write a stream in a session of its own, and return what each write gave."""
    state(bench, "STOP", "RESUMING")
    bench.mark()
    return write(bench, *pieces)


def forecast(shell: Shell, data: bytes, uuid: str = "") -> dict[str, Any]:
    """Return what a device of a host, without a UUID the only one, would answer to a stream."""
    tree = shell.host.tree
    if not uuid:
        (uuid,) = shell.ls("/ctl/migration")
    file = tree.open(tree.resolve(f"/ctl/migration/{uuid}/check"), BOTH)
    if data:
        file.write(data)
    answer: dict[str, Any] = json.loads(bytes(file.read(0, 1 << 20)))
    return answer


def cut(data: bytes, *sizes: int) -> list[bytes]:
    """Return pieces of these sizes."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    assert not data
    return pieces


# What marks the lines, and what to read on them. The wording is the emulator's own.
_DECIMAL = r"(?<![0-9a-f.])(-?\d+)\b(?!\.)"
_QUEUE = r"\b([0-9a-f]{2}\.[0-9a-f]{4})\b"
_HEX = r"(?:source|target) ([0-9a-f]{1,2})\b"
_LINES = (
    ("Q0", r"^Migration", (_QUEUE,)),
    ("N1", r"number of queues", (_DECIMAL,)),
    ("W4", r"larger", (_DECIMAL,)),
    ("A1", r"not in the target", (_QUEUE,)),
    ("T1", r"AP type", (_HEX,)),
    ("B1", r"bind", (_HEX, _QUEUE)),
    ("S1", r"secure execution", ()),
    ("U1", r"not bound to vfio_ap", (_QUEUE,)),
    ("C1", r"^control domain", (r"\b([0-9a-f]{4})\b",)),
    ("R1", r"is not available|response code", (_QUEUE,)),
)
_PAIRS = {
    "F1": "APSC",
    "F2": "AP4KM",
    "F3": "AP4KC",
    "M1": "CCA",
    "M2": "accelerator",
    "M3": "EP11",
    "X1": "APXA",
    "L1": "SLCF",
    "K1": "native|stateless functions",
}


def events(bench: Bench, uuid: str = M1) -> list[Event]:
    """Return the error lines since the mark as (id of the line, its fields)."""
    found = []
    for line in bench.log():
        prefix = f"err vfio_ap_mdev {uuid}: "
        if line.startswith(prefix):
            found.append(_event(line.removeprefix(prefix)))
        else:
            assert line.startswith("err "), line
            found.append(("W1",))
    return found


def _event(text: str) -> Event:
    for key, mark, fields in _LINES:
        if re.search(mark, text):
            return (key, *(found for field in fields for found in re.findall(field, text)))
    (side,) = re.findall(r"\b(source|target)\b", text)
    (key,) = (key for key, mark in _PAIRS.items() if re.search(mark, text))
    if key == "K1":
        value = "native" if "native" in text else "stateless"
    else:
        value = "absent" if re.search(r"\bnot\b", text) else "present"
    return (key, side, value, *re.findall(_QUEUE, text))


def pair(key: str, source: str, apqn: str) -> list[Event]:
    """Return the two lines about a characteristic in which source and target differ."""
    target = {"present": "absent", "absent": "present", "native": "stateless"}[source]
    return [(key, "source", source, apqn), (key, "target", target, apqn)]
