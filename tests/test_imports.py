"""The layers, as data: who may import whom, and what the core may use of the world outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import apfs

ROOT = Path(apfs.__file__).parent

# A package, or a module beside the packages, may import itself and what its row names. The order is that of the
# layers: nobody imports from a row below its own.
ALLOWED: dict[str, set[str]] = {
    # what everything is made of
    "errors": set(),
    "journal": set(),
    "sysfs": {"errors", "journal"},
    # Linux
    "kernel": {"errors", "journal", "sysfs"},
    "ap": {"errors", "journal", "sysfs", "kernel"},
    "mdev": {"errors", "journal", "sysfs", "kernel"},
    "vfio": {"errors", "journal", "sysfs", "kernel"},
    "vfio_ap": {"errors", "journal", "sysfs", "kernel", "ap", "mdev", "vfio"},
    # the host
    "system": {"errors", "journal", "sysfs", "kernel", "ap", "mdev", "vfio", "vfio_ap"},
    "scenario": {"errors", "kernel", "ap", "vfio_ap"},
    "ctl": {"errors", "journal", "sysfs", "kernel", "ap", "mdev", "vfio", "vfio_ap", "system"},
    "layout": {"sysfs", "kernel", "ap", "mdev", "vfio", "vfio_ap", "system", "ctl"},
    "guest": {"errors", "vfio_ap", "system", "layout"},
    "host": {"errors", "ap", "vfio_ap", "scenario", "system", "layout", "guest"},
    "recording": {"errors", "kernel", "ap", "vfio_ap", "scenario", "host"},
    "replay": {"errors", "journal", "sysfs", "vfio", "system", "scenario", "ctl", "host"},
    "report": {"journal", "kernel", "ap", "vfio_ap", "scenario", "ctl", "host", "replay"},
    # the front ends
    "writing": set(),
    "mounts": {"errors", "journal"},
    "fuse": {"errors", "journal", "sysfs", "ctl", "host", "mounts"},
    "sandbox": {"mounts", "vfio"},
    "vmm": {"mounts", "sandbox"},
    "testing": {"errors", "journal", "sysfs", "host", "system", "scenario", "report", "writing", "mounts"},
    "cli": {
        *("ap", "fuse", "host", "journal", "kernel", "mounts", "recording", "replay", "report", "sandbox", "scenario"),
        *("testing", "vfio", "vmm", "writing"),
    },
    "__main__": {"cli"},
    "__init__": {"errors", "host", "journal", "mounts", "scenario", "testing"},
}
PURE = {"errors", "journal", "sysfs", "kernel", "ap", "mdev", "vfio", "vfio_ap", "system", "ctl", "layout"}
PURE |= {"guest", "host"}
OUTSIDE = {
    *("__future__", "abc", "array", "bisect", "collections", "contextlib", "dataclasses", "enum", "errno"),
    *("functools", "json", "fnmatch", "itertools", "operator", "re", "select", "stat", "struct", "typing"),
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in modules()}


def imports(path: Path) -> set[str]:
    """Return the modules that a module imports, for its types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import in {path}"
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else module for name in inner}
    return found


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    here = package(path)
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("apfs.")}
    assert inside <= ALLOWED[here] | {here}


def test_no_row_names_one_below_it() -> None:
    rows = list(ALLOWED)
    wrong = {row: names for row, names in ALLOWED.items() if not names <= set(rows[: rows.index(row)])}
    assert wrong == {}


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name_of(path): (imports(path) & MODULES) - {"apfs"} for path in modules() if name_of(path) != "apfs"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", [path for path in modules() if package(path) in PURE], ids=str)
def test_the_core_is_pure(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - {"apfs"}
    assert outside <= OUTSIDE


def test_importing_the_host_needs_only_the_standard_library() -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); import apfs; apfs.Shell(apfs.Host())"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)


def test_no_module_is_longer_than_a_sitting() -> None:
    longer = {name_of(path) for path in modules() if len(path.read_text().splitlines()) > 450}
    assert longer == set()
