"""The image of the Containerfile: what is in it, and the least privileges with which it works."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import apfs

if TYPE_CHECKING:
    from tests.containers.conftest import Engine

RUN = "mount-examples/containers/run.sh"
AS_USER = ["--device=/dev/fuse", "--cap-add=SYS_ADMIN", "--security-opt=unmask=ALL"]
AS_ROOT = ["--device=/dev/fuse", "--cap-add=SYS_ADMIN", "--cap-add=NET_ADMIN"]
ENGINES = ("engine", "rootless")


def doctor(engine: Engine, image: str, *options: str, status: int) -> tuple[dict[str, object], list[str]]:
    """Return the situation and the flags that are missing."""
    report = json.loads(engine("run", "--rm", *options, image, "apfs", "doctor", "--json", status=status))
    assert report["ok"] == (status == 0)
    return report["situation"], report["flags"]


def test_what_is_in_it(engine: Engine, image: str) -> None:
    assert engine("run", "--rm", image, "apfs", "--version") == f"apfs, version {apfs.__version__}\n"
    assert engine("run", "--rm", image, "id", "-un") == "apfs\n"
    assert engine("run", "--rm", image, "sh", "-c", "command -v gcc || echo none") == "none\n"
    python = "from apfs.host import Host; from apfs.testing import Shell; print(Shell(Host()).ls('/sys/bus'))"
    assert "'ap'" in engine("run", "--rm", "--cap-drop=ALL", image, "/opt/apfs/bin/python", "-c", python)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("options", "missing"), [((), AS_USER), (("--user=root",), AS_ROOT)])
def test_what_the_doctor_prescribes_is_enough(
    request: pytest.FixtureRequest, image: str, name: str, options: tuple[str, ...], missing: list[str]
) -> None:
    engine = request.getfixturevalue(name)
    situation, flags = doctor(engine, image, *options, status=1)
    rootless = name == "rootless"
    assert (situation["place"], situation["engine"], situation["user_namespace"]) == ("container", "podman", rootless)
    # Root of a user namespace meets the hidden parts of /proc as an ordinary user does.
    assert set(flags) == {*missing, *(AS_USER[-1:] if rootless else [])}
    _, flags = doctor(engine, image, *options, *flags, status=0)
    assert flags == []


@pytest.mark.parametrize("without", AS_USER)
def test_each_of_the_privileges_is_needed(engine: Engine, image: str, without: str) -> None:
    _, flags = doctor(engine, image, *(flag for flag in AS_USER if flag != without), status=1)
    assert flags == [without]


def test_no_new_privileges_is_named(engine: Engine, image: str) -> None:
    options = [*AS_USER, "--security-opt=no-new-privileges"]
    said = engine("run", "--rm", *options, image, "apfs", "doctor", "mount", status=1)
    assert "start the container without --security-opt no-new-privileges" in said


@pytest.mark.parametrize("name", ENGINES)
def test_run_script(request: pytest.FixtureRequest, image: str, name: str) -> None:
    engine = request.getfixturevalue(name)
    command = "echo -5 > /sys/bus/ap/apmask && readlink /sys/devices/ap/card05/05.0004/driver"
    said = engine.script(RUN, image, "apfs", "exec", "--", "sh", "-c", command)
    assert said == "../../../../bus/ap/drivers/vfio_ap\n"
    # The status is the command's.
    assert engine.script(RUN, image, "apfs", "exec", "--", "sh", "-c", "exit 7", status=7) == ""


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("user", ["apfs", "root"])
def test_a_mount_needs_two_of_them(request: pytest.FixtureRequest, image: str, name: str, user: str) -> None:
    engine = request.getfixturevalue(name)
    options = ["--device=/dev/fuse", "--cap-add=SYS_ADMIN", f"--user={user}"]
    said = engine("run", "--rm", *options, image, "apfs", "doctor", "mount", "allow-other")
    assert said.count("✓") == 2
