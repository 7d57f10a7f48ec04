"""What the Ultravisor tells hosts and Secure Execution guests."""

from __future__ import annotations

import pytest

from tests.hosts import BARE, M1, Bench, built

UV = "/sys/firmware/uv"


def told(bench: Bench, root: str = "") -> tuple[str, ...]:
    return tuple(bench.cat(f"{root}{UV}/{name}") for name in ("prot_virt_guest", "prot_virt_host"))


def test_an_lpar_is_a_host() -> None:
    assert told(Bench(BARE)) == ("0\n", "1\n")


@pytest.mark.parametrize("environment", ["lpar", "kvm"])
def test_a_secure_execution_guest(environment: str) -> None:
    bench = Bench(f'secure_execution = true\nenvironment = "{environment}"\n{BARE}')
    assert told(bench) == ("1\n", "0\n")
    words = bench.cat(f"{UV}/query/facilities").split("\n")
    assert len(words) == 5
    # pvapconfig looks for bit 30, counted from the left: list secrets. A host has no such call.
    assert int(words[0], 16) >> (63 - 30) & 1 == 1
    assert int(Bench(BARE).cat(f"{UV}/query/facilities").split()[0], 16) >> (63 - 30) & 1 == 0
    assert int(bench.cat(f"{UV}/query/feature_indications"), 16) == 1 << 62 | 1 << 59 | 1 << 58
    assert bench.cat(f"{UV}/query/max_secrets") == "65535\n"


@pytest.mark.parametrize("environment", ["zvm", "kvm"])
def test_other_guests_have_none(environment: str) -> None:
    bench = Bench(f'environment = "{environment}"\n{BARE}')
    assert bench.ls("/sys/firmware") == []


def test_guests_of_a_host() -> None:
    bench = built()
    for mode, expected in (("off", []), ("on", ["prot_virt_guest", "prot_virt_host", "query"])):
        bench.console(f"se-guest {M1} {mode}")
        bench.run_guest(M1)
        place = f"/guests/{M1}/sys/firmware"
        assert (bench.ls(f"{place}/uv") if bench.ls(place) else []) == expected
        bench.run_guest(M1, 0)
