"""The examples of the guide, and the Python ones of README, do what the pages say.

Every block of the guide that is a file says so in its first line: `# NAME`. Only `test_fails.py` fails.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.testing.conftest import ROOT, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testing.conftest import Project

GUIDE = ROOT / "docs/pytest.md"


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page that are in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def write_guide(project: Project) -> None:
    for block in blocks(GUIDE, "python") + blocks(GUIDE, "toml"):
        name = re.match(r"# (\S+)\n", block)
        assert name, f"a block of {GUIDE} that does not begin with the name of its file:\n{block}"
        path = project.directory / name[1]
        assert not path.exists(), f"two blocks of {GUIDE} are {name[1]}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(block, "utf-8")


def pass_all(project: Project, *arguments: str) -> int:
    """Run tests of a project, which pass, and return how many there are."""
    said = project.pytest("-q", "-W", "error", "--strict-markers", *arguments)
    passed = re.search(r"^(\d+) passed in", said, re.MULTILINE)
    assert passed
    assert project.left_behind() == []
    return int(passed[1])


def test_examples_of_the_guide_pass(project: Project) -> None:
    write_guide(project)
    assert pass_all(project, "--ignore=test_fails.py", "--ignore=test_libvirt.py") > len(blocks(GUIDE, "python"))


@pytest.mark.skipif(os.geteuid() != 0, reason="libvirt starts QEMU only for root")
def test_examples_with_libvirt_pass(project: Project) -> None:
    write_guide(project)
    assert pass_all(project, "test_libvirt.py") == 2


def test_failure_looks_as_in_the_guide(project: Project) -> None:
    write_guide(project)
    options = ("--apfs-journals=journals", "--apfs-report=apfs-reports")
    said = project.pytest("test_fails.py", *options, status=1)
    sections = blocks(GUIDE, "text")
    assert len(sections) == 1 + len(options)
    assert [section for section in sections if section not in said] == []
    project.pytest("test_fails.py", "--apfs-report=apfs-reports", "--junitxml=junit.xml", status=1)
    (element,) = blocks(GUIDE, "xml")
    assert element.strip() in (project.directory / "junit.xml").read_text("utf-8")


def test_python_of_the_readme(project: Project) -> None:
    """Blocks with tests pass; the others print what their comments say."""
    found = blocks(ROOT / "README.md", "python")
    assert found
    for number, block in enumerate(found):
        if "def test_" in block:
            project.write(f"test_readme_{number}.py", block)
            assert " passed" in project.pytest(f"test_readme_{number}.py")
        else:
            expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
            assert expected
            assert run(project.python, "-c", block, cwd=project.directory).splitlines() == expected
