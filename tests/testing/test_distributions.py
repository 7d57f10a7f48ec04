"""What is in the source distribution and in the wheel, and what the metadata say."""

from __future__ import annotations

import importlib.metadata
import tarfile
import tomllib
import zipfile
from typing import TYPE_CHECKING

import pytest
from packaging.metadata import Metadata

import apfs
from tests.testing.conftest import ROOT, run

if TYPE_CHECKING:
    from pathlib import Path

    from packaging.requirements import Requirement

NAME = f"apfs-{apfs.__version__}"


def files(*places: str) -> set[str]:
    """Names of the files in the checkout at and below some places, caches aside."""
    found: set[str] = set()
    for place in places:
        path = ROOT / place
        found |= {
            str(file.relative_to(ROOT)) for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()
        }
    return {name for name in found if "__pycache__" not in name}


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Metadata:
    with zipfile.ZipFile(wheel) as archive:
        return Metadata.from_email(archive.read(f"{NAME}.dist-info/METADATA"), validate=True)


def test_wheel_has_the_package_and_what_belongs_below_the_prefix_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    own = {name.removeprefix(f"{NAME}.data/data/") for name in names if not name.startswith(f"{NAME}.dist-info/")}
    assert own == files("apfs") | {name.removeprefix("docs/") for name in files("docs/share")}
    assert {"apfs/py.typed", "apfs/sandbox/module-tools.sh", "apfs/scenario/gallery/default.toml"} <= own
    assert f"{NAME}.dist-info/licenses/LICENSE" in names


def test_wheel_is_the_same_for_all_machines(wheel: Path) -> None:
    """Nothing is compiled: one wheel serves each architecture and each CPython."""
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert "\nRoot-Is-Purelib: true\n" in archive.read(f"{NAME}.dist-info/WHEEL").decode()
        assert [name for name in archive.namelist() if name.endswith(".so")] == []


def test_sdist_has_the_whole_project(distributions: Path) -> None:
    with tarfile.open(distributions / f"{NAME}.tar.gz") as archive:
        modes = {member.name.removeprefix(f"{NAME}/"): member.mode for member in archive if member.isfile()}
    pages = [page.name for page in ROOT.glob("*.md")]
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"} <= set(pages)
    wanted = files("apfs", "tests", "docs", "mount-examples", ".ci", "LICENSE", "pyproject.toml", *pages)
    assert wanted - set(modes) == set()
    assert [name for name in modes if name.endswith((".pyc", ".pyo"))] == []
    assert modes["tests/run.sh"] & modes["mount-examples/quickstart.sh"] & 0o111


def test_metadata(metadata: Metadata) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (metadata.name, str(metadata.version)) == ("apfs", apfs.__version__)
    assert metadata.license_expression == "MIT"
    assert metadata.license_files == ["LICENSE"]
    assert metadata.description == (ROOT / "README.md").read_text("utf-8")
    assert metadata.description_content_type == "text/markdown"
    assert {"Typing :: Typed", "Framework :: Pytest"} <= set(metadata.classifiers or ())
    assert metadata.provides_extra == list(declared["optional-dependencies"])
    lowest = metadata.requires_python
    assert lowest is not None
    supported = [entry.rpartition(" ")[2] for entry in metadata.classifiers or () if ":: 3." in entry]
    assert supported
    assert all(version in lowest for version in supported)


def test_only_the_extra_needs_a_compiler(metadata: Metadata) -> None:
    requirements: list[Requirement] = metadata.requires_dist or []
    always = {found.name for found in requirements if not found.marker}
    mount = {found.name for found in requirements if found.marker and found.marker.evaluate({"extra": "mount"})}
    assert mount == {"pyfuse3", "trio"}
    assert always.isdisjoint(mount)


def test_entry_points(wheel: Path) -> None:
    (found,) = importlib.metadata.distributions(name="apfs", path=[str(wheel)])
    assert {(point.group, point.name, point.value) for point in found.entry_points} == {
        ("console_scripts", "apfs", "apfs.cli.start:main"),
        ("console_scripts", "apfs-qemu-system-s390x", "apfs.vmm.emulator:main"),
        ("console_scripts", "mount.fuse.apfs", "apfs.cli.mount_helper:main"),
        ("pytest11", "apfs", "apfs.testing.plugin"),
    }


def test_without_extras_there_is_everything_but_mounts(bare: Path, tmp_path: Path) -> None:
    script = (
        "import sys, apfs.host, apfs.testing;"
        "shell = apfs.testing.Shell(apfs.host.Host());"
        "print(apfs.__file__, shell.cat('/sys/bus/ap/bindings'), end='');"
        "assert {'pyfuse3', 'trio', 'click', 'rich', 'tomlkit'}.isdisjoint(sys.modules)"
    )
    said = run(bare, "-c", script, cwd=tmp_path)
    assert said.startswith(str(bare.parents[1]))
    assert said.endswith(" 0/0 (complete)\n")
    command = bare.with_name("apfs")
    assert run(command, "--version", cwd=tmp_path) == f"apfs, version {apfs.__version__}\n"
    assert "default: valid; cards: 3" in run(command, "scenario", "validate", "default", cwd=tmp_path)
