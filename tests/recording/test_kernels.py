"""The kernel of a recorded machine is recognised by what the machine has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs.host import Host
from apfs.kernel.profile import DEFAULT, PROFILES, Profile, releases, rows
from apfs.recording.recorder import record
from apfs.scenario.reader import load, loads
from apfs.scenario.writer import dumps
from apfs.testing.files import Shell
from tests.hosts import M1
from tests.kernels.rows import toml
from tests.recording.machines import Copy
from tests.recording.test_round_trip import sysfs

MACHINE = f"""
[qci]
domains = [4, 0x47]
[[card]]
adapters = [5, 6]
type = "CEX7C"
[masks]
apmask = "-5"
[[mdev]]
uuid = "{M1}"
adapters = 5
domains = 4
"""
GUIDE = Path(__file__).parents[2] / "docs/kernels.md"
(EL9,) = re.findall(r"```toml\n(# The vfio_ap of [^`]+)```", GUIDE.read_text("utf-8"))


def recorded(kernel: str) -> Profile:
    return record(Copy.of(kernel + MACHINE)).scenario.kernel


@pytest.mark.parametrize("version", PROFILES)
def test_releases(version: str) -> None:
    # From 7.0 on nothing that sysfs shows has changed but modes, which are not looked at.
    seen = "7.2" if version == "7.1" else version
    assert recorded(toml(Profile.of(version))) == Profile.of(seen)


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        ("5.14", {"ap_config": True}),
        ("6.12", {"depth_plus_one": True}),
        ("6.5", {"matrix_features": True}),
        ("7.2", {"driver_override": False}),
        ("5.14", {"interrupt_live": True}),
    ],
)
def test_single_features_of_others(version: str, changes: dict[str, object]) -> None:
    kernel = Profile.of(version, changes)
    assert recorded(toml(kernel)) == kernel


def shown(host: Host) -> dict[str, str]:
    """Return what sysfs shows but for modes, which are not looked at.

    Nor does it count whether iommufd is loaded: an old kernel looks the same as a new one without it.
    """
    found = {path: text if text.startswith("link") else text.partition(" ")[2] for path, text in sysfs(host).items()}
    aside = ("/sys/kernel/debug", "/sys/class/misc/iommu", "/sys/devices/virtual/misc/iommu")
    numbers = [path for path, text in found.items() if text.endswith("misc/iommu") and path.startswith("/sys/dev")]
    return {path: text for path, text in found.items() if not path.startswith((*aside, *numbers))}


@given(
    st.sampled_from(releases()),
    st.dictionaries(st.sampled_from([*rows()]), st.integers(0, 3), max_size=2),
)
def test_any_kernel(version: str, picks: dict[str, int]) -> None:
    """What is recognised shows the same as what was recorded."""
    changes = {name: rows()[name].choices[pick % len(rows()[name].choices)] for name, pick in picks.items()}
    host = Host(loads(toml(Profile.of(version, changes)) + MACHINE))
    host.scan()
    assert shown(Host(loads(record(Shell(host)).text()))) == shown(host)


def test_kernel_of_a_distribution() -> None:
    kernel = loads(EL9).kernel
    assert kernel.version == "5.14"
    found = recorded(toml(kernel))
    # Which release it resembles most is open; what it shows is not.
    for name in ("hotplug", "guest_matrix", "ap_config", "queue_status", "scans_writable", "chkstop", "vfio_dev_class"):
        assert getattr(found, name) == getattr(kernel, name), name
    assert recorded(toml(found)) == found


def test_little_of_a_machine_says_nothing() -> None:
    recording = record(Copy.of("[qci]\ndomains = [4]\n"))
    assert recording.scenario.kernel == DEFAULT
    assert "kernel" not in recording.text()


def test_a_recording_of_an_old_kernel_says_so_and_boots() -> None:
    recording = record(Copy.of(toml(Profile.of("5.14")) + MACHINE))
    assert 'kernel = "5.14"\n' in recording.text()
    assert any("kernel is the one that looks most like it" in note for note in recording.notes)
    assert Host(loads(recording.text())).profile == Profile.of("5.14")


@pytest.mark.parametrize("scenario", ["default", "kernel-doc", "secure-execution"])
def test_hosts_of_the_gallery_have_the_default(scenario: str) -> None:
    assert record(Copy.of(dumps(load(scenario)))).scenario.kernel == DEFAULT
