"""The layers, as data: who may import whom, and what the core may use of the world outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import apfs

ROOT = Path(apfs.__file__).parent

# A package may import itself and what stands in its row.
ALLOWED = {
    "kernel": set(),
    "ap": {"kernel"},
    "mdev": {"kernel"},
    "vfio": {"kernel"},
    "vfio_ap": {"kernel", "ap", "mdev", "vfio"},
    "scenario": {"kernel", "ap"},
    "scenario_writer": {"kernel", "ap", "scenario"},
    "record": {"kernel", "ap", "host", "scenario", "scenario_writer"},
    "control": {"kernel", "ap", "mdev", "vfio", "vfio_ap", "host"},
    "ioctl": {"vfio"},
    "layout": {"kernel", "ap", "mdev", "vfio", "vfio_ap", "control", "host"},
    "host": {"kernel", "ap", "mdev", "vfio", "vfio_ap", "scenario", "layout"},
    "history": {"kernel"},
    "testing": {"kernel", "history", "host"},
    "migrate": {"ap", "monitor", "mounts", "vfio_ap"},
    "environment": set(),
    "mounts": {"environment"},
    "monitor": {"kernel", "mounts"},
    "report": {"kernel", "history"},
    "mount_helper": {"mounts", "scenario", "streams"},
    "streams": set(),
    "completion": {"mounts", "scenario"},
    "uevents": set(),
    "sandbox": {"environment", "mounts", "uevents", "ioctl", "vfio"},
    "testbed": {"mounts", "migrate", "testing"},
    "pytest_plugin": {"host", "mounts", "scenario", "testing", "testbed"},
    "fuse": {"environment", "kernel", "vfio", "host", "fuse"},
    "cli": {
        "completion",
        "scenario",
        "host",
        "history",
        "mounts",
        "mount_helper",
        "monitor",
        "report",
        "migrate",
        "fuse",
        "record",
        "sandbox",
        "streams",
        "doctor",
    },
    "doctor": {"environment", "host", "mounts", "sandbox", "scenario", "testbed", "testing", "uevents", "vfio"},
    "scenarios": set(),
    "__main__": {"cli"},
    "__init__": set(),
}
PURE = {"kernel", "ap", "mdev", "vfio", "vfio_ap", "control", "layout", "host", "history", "testing"}
OUTSIDE = {
    *(
        "__future__",
        "abc",
        "array",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "errno",
        "functools",
        "json",
        "posixpath",
    ),
    *("fnmatch", "operator", "re", "select", "stat", "struct", "typing"),
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import in {path}"
            module = node.module or ""
            found |= {f"apfs.{alias.name}" for alias in node.names} if module == "apfs" else {module}
    return found


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    here = package(path)
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("apfs.")}
    inside -= {"__version__"}
    assert inside <= ALLOWED[here] | {here}


@pytest.mark.parametrize("path", [path for path in modules() if package(path) in PURE], ids=str)
def test_the_core_is_pure(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - {"apfs"}
    assert outside <= OUTSIDE


def test_importing_the_host_needs_only_the_standard_library() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); import apfs.host; import apfs.testing; apfs.host.Host()"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)
