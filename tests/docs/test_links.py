"""Relative links in the documentation lead somewhere, and what README calls exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from apfs.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?<!from )\bapfs (?P<words>[a-z]+(?: [a-z]+)?)")


def relative_path(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    for found in _LINK.finditer(_FENCE.sub("", page.read_text("utf-8"))):
        if "://" not in found["target"]:
            yield found["target"]


@pytest.mark.parametrize("page", PAGES, ids=relative_path)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=relative_path)
def test_pages_start_with_a_heading(page: Path) -> None:
    text = re.sub(r"^<!--.*?-->\s*", "", page.read_text("utf-8"), flags=re.DOTALL)
    assert text.startswith("# ")


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the words after `apfs` in code of README."""
    text = (ROOT / "README.md").read_text("utf-8")
    for code in re.findall(r"^```.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL):
        for found in _COMMAND.finditer(code):
            yield tuple(found["words"].split())


def test_readme_names_commands() -> None:
    assert {words[0] for words in commands()} == set(main.commands)


@pytest.mark.parametrize("words", sorted(set(commands())), ids=" ".join)
def test_commands_in_readme_exist(words: tuple[str, ...]) -> None:
    command: click.Command = main
    for word in words:
        if not isinstance(command, click.Group):
            break  # an argument
        assert word in command.commands
        command = command.commands[word]
