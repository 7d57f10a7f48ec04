"""The public names of `apfs` and `apfs.testing`: all are there, importing them costs little, and guides use them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import apfs
import apfs.testing

ROOT = Path(apfs.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("mount-examples/**/*.py"))]
THIRD_PARTY = {"pyfuse3", "trio", "click", "rich", "tomlkit", "pytest"}


@pytest.mark.parametrize("module", [apfs, apfs.testing], ids=["apfs", "apfs.testing"])
def test_every_name_is_there(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert names == sorted(names, key=lambda name: (name.islower(), name))
    assert set(names) == set(module._HOMES)  # type: ignore[attr-defined] # noqa: SLF001 -- both are written by hand
    for name in names:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("name", ["apfs", "apfs.testing"])
def test_an_unknown_name_is_refused(name: str) -> None:
    module = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("name", ["apfs", "apfs.testing"])
def test_importing_costs_next_to_nothing(name: str) -> None:
    """Not a matter of time, which depends on the machine, but of what is loaded besides."""
    script = f"import sys; before = set(sys.modules); import {name}; print(*sorted(set(sys.modules) - before))"
    command = [sys.executable, "-c", script]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert {module for module in loaded if module.partition(".")[0] == "apfs"} == {"apfs", name}
    assert loaded.isdisjoint(THIRD_PARTY)


def test_a_host_needs_no_third_party_package() -> None:
    script = "import sys, apfs; apfs.Shell(apfs.Host()); apfs.records; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    )
    assert loaded.isdisjoint({"pyfuse3", "trio", "click", "rich"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_guides_import_public_names_only(page: Path) -> None:
    text = page.read_text("utf-8")
    deep = re.findall(r"^ *(?:from|import) (apfs\.(?!testing\b)[\w.]+)", text, re.MULTILINE)
    assert deep == []
