#!/usr/bin/python3
"""A callout of mdevctl for vfio_ap, which looks at the same files as ap-check of s390-tools and decides the same.

mdevctl asks for the attributes of a device that runs (event get), and before it starts one (event pre), whose
definition is on standard input: there it refuses queues of other devices, and those that the masks leave to the host.
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

MATRIX = Path("/sys/devices/vfio_ap/matrix")
BUS = Path("/sys/bus/ap")
UNKNOWN_TYPE = 2
KINDS = ("adapter", "domain", "control_domain")


def attributes(uuid: str) -> list[dict[str, str]]:
    """Return what is assigned to a device, as mdevctl writes it."""
    found: dict[str, set[int]] = {kind: set() for kind in KINDS}
    for line in (MATRIX / uuid / "matrix").read_text().split():
        for kind, number in zip(KINDS, line.split("."), strict=False):
            if number:
                found[kind].add(int(number, 16))
    found["control_domain"].update(int(text, 16) for text in (MATRIX / uuid / "control_domains").read_text().split())
    return [{f"assign_{kind}": str(number)} for kind in KINDS for number in sorted(found[kind])]


def queues(assigned: list[dict[str, str]]) -> set[tuple[int, int]]:
    """Return the APQNs of attributes."""
    adapters, domains = (
        {int(value, 0) for one in assigned for name, value in one.items() if name == f"assign_{kind}"}
        for kind in KINDS[:2]
    )
    return {(adapter, domain) for adapter in adapters for domain in domains}


def reserved(queue: tuple[int, int]) -> bool:
    """Whether both masks have a queue."""
    texts = ((BUS / name).read_text() for name in ("apmask", "aqmask"))
    return all(int(text, 16) >> 255 - number & 1 for text, number in zip(texts, queue, strict=True))


def objections(uuid: str, wanted: set[tuple[int, int]]) -> list[str]:
    """Return why a device cannot be started."""
    found = []
    for other in Path("/sys/bus/mdev/devices").iterdir():
        if other.name != uuid:
            both = wanted & queues(attributes(other.name))
            found += [f"APQN {apid}.{apqi} already in use by {other.name}" for apid, apqi in sorted(both)]
    return found + [f"APQN {apid}.{apqi} is the host's" for apid, apqi in sorted(filter(reserved, wanted))]


def main() -> int:
    """Return the exit status of an event."""
    parser = ArgumentParser()
    for letter in "easupt":
        parser.add_argument(f"-{letter}", required=True)
    given = parser.parse_args()
    if given.t != "vfio_ap-passthrough":
        return UNKNOWN_TYPE
    if (given.e, given.a) == ("get", "attributes"):
        print(json.dumps(attributes(given.u)))
    if (given.e, given.a) == ("pre", "start"):
        found = objections(given.u, queues(json.load(sys.stdin)["attrs"]))
        for line in found:
            print(line, file=sys.stderr)
        return int(bool(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
