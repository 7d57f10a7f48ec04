"""The hosts of the gallery run every kernel."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from apfs.host import Host
from apfs.kernel.profile import PROFILES, Profile
from apfs.scenario.reader import gallery, load, loads
from apfs.testing.files import Shell
from tests.kernels import bus_rows, vfio_rows  # noqa: F401 -- which register their checks
from tests.kernels.rows import CHECKS
from tests.scenario.test_gallery import BIG, UNREADABLE


@pytest.mark.parametrize("version", PROFILES)
@pytest.mark.parametrize("name", gallery())
def test_it_boots(name: str, version: str) -> None:
    scenario = replace(load(name), kernel=Profile.of(version))
    host = Host(scenario)
    assert list(host.journal) == []  # in silence
    shell = Shell(host)
    assert shell.status()["kernel"] == {"version": version, "changes": {}}
    assert shell.ls("/dev/vfio-ap") == [spec.uuid for spec in scenario.mdevs]
    for spec in scenario.mdevs:
        assert shell.cat(f"/dev/vfio-ap/{spec.uuid}/guest") == f"{int(spec.guest)}\n"
        shown = shell.status()["mdevs"][spec.uuid]["matrix"]
        assert shown["adapters"] == list(spec.adapters)
        assert shown["domains"] == list(spec.domains)
    host.scan()
    moved = {"add", "remove", "bind", "unbind"}
    assert not [event for event in shell.uevents() if event.action in moved]  # a scan finds nothing new


@pytest.mark.parametrize("version", PROFILES)
@pytest.mark.parametrize("name", [name for name in gallery() if name not in BIG])
def test_every_file_can_be_read(name: str, version: str) -> None:
    shell = Shell(Host(replace(load(name), kernel=Profile.of(version))))
    for path, stat in shell.find("/sys"):
        if stat.mode & 0o170000 == 0o100000 and stat.mode & 0o444 and path not in UNREADABLE:
            shell.cat(path)
        elif stat.mode & 0o170000 == 0o120000:
            assert shell.exists(path), path


GUIDE = (Path(__file__).parents[2] / "docs/kernels.md").read_text("utf-8")
DISTRIBUTIONS = re.findall(r"```toml\n# ([^\n]*)\n([^`]*)```", GUIDE)


@pytest.mark.parametrize(("name", "text"), DISTRIBUTIONS, ids=[name for name, _ in DISTRIBUTIONS])
def test_kernels_of_distributions_in_the_guide(name: str, text: str) -> None:
    del name
    kernel = loads(text).kernel
    # None of them is a feature that the release has anyway.
    assert len(kernel.changes()) == text.count("\n") - 2
    host = Host(replace(load("kernel-doc"), kernel=kernel))
    assert list(host.journal) == []
    for feature in kernel.changes():
        CHECKS[feature](kernel)
