"""The manual pages are what `docs/generate_man.py` makes of the parser, leave nothing out, and are good roff."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import click
import pytest

from apfs.cli import mount_helper
from apfs.cli.main import main
from docs import generate_man
from tests.tools.conftest import need

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = generate_man.pages()


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """All commands by the name of their page."""
    yield name, command
    if isinstance(command, click.Group):
        for word, below in command.commands.items():
            if not below.hidden:
                yield from commands(below, f"{name}-{word}")


COMMANDS = {
    **{f"man1/{name}.1": command for name, command in commands(main, "apfs")},
    "man8/mount.fuse.apfs.8": mount_helper.command,
}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    need(command[0])
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "200", "MANPAGER": "cat"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=env)


def test_each_command_has_a_page_and_there_are_no_other() -> None:
    files = {str(path.relative_to(generate_man.MAN)) for path in generate_man.MAN.rglob("*") if path.is_file()}
    assert files == set(COMMANDS), "run: python docs/generate_man.py"


@pytest.mark.parametrize("name", PAGES)
def test_committed_page_is_up_to_date(name: str) -> None:
    text = (generate_man.MAN / name).read_text("utf-8")
    assert text == PAGES[name], f"run: python docs/generate_man.py (docs/share/man/{name} is not up to date)"


@pytest.mark.parametrize("name", PAGES)
def test_page_is_good_roff(name: str) -> None:
    result = run("man", "--warnings", "--local-file", str(generate_man.MAN / name))
    assert (result.returncode, result.stderr) == (0, "")
    said = run("mandoc", "-T", "lint", "-W", "warning", str(generate_man.MAN / name)).stdout.splitlines()
    # A date would have to be changed with every change, and says nothing that the version does not.
    assert [line for line in said if "missing date" not in line] == []


@pytest.mark.parametrize("name", PAGES)
def test_page_tells_everything(name: str) -> None:
    """Read as a user does: options, commands, and the help's words."""
    command = COMMANDS[name]
    shown = run("man", "--local-file", str(generate_man.MAN / name)).stdout
    section = dict(re.findall(r"^(\S.*)\n((?: .*\n|\n)*)", shown, re.MULTILINE))
    assert {"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"} <= set(section)
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            for flag in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"(?<![\w-]){flag}\b", section["OPTIONS"]), flag
            assert all(word in section["OPTIONS"] for word in (parameter.help or "").replace("`", "").split())
        elif isinstance(parameter, click.Argument):
            assert parameter.make_metavar(click.Context(command)) in section["SYNOPSIS"]
    assert "--help" in section["OPTIONS"]
    if isinstance(command, click.Group):
        page = name.partition("/")[2].rpartition(".")[0]
        assert all(f"{page}-{word}(1)" in section["COMMANDS"] for word in command.commands)
    words = re.findall(r"[\w./-]+", shown)
    assert set(re.findall(r"[\w./-]+", (command.help or "").replace("\b", ""))) - {"EXAMPLE"} <= set(words)


def test_pages_refer_to_pages_that_exist() -> None:
    referred = {
        found for page in PAGES.values() for found in re.findall(r"^\.BR (apfs\S*) \((\d)\)", page, re.MULTILINE)
    }
    assert len(referred) > len(main.commands)
    for page, section in referred:
        assert f"man{section}/{page.replace(chr(92), '')}.{section}" in PAGES


@pytest.mark.parametrize("name", ["man1/apfs.1", "man1/apfs-mount.1", "man1/apfs-migrate.1", "man8/mount.fuse.apfs.8"])
def test_most_important_pages_have_examples_and_references(name: str) -> None:
    assert {".SH EXAMPLES", ".SH SEE ALSO"} <= set(PAGES[name].splitlines())
