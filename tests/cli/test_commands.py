"""The commands that need no mount."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import apfs as package
from apfs.cli.main import COMMANDS, main
from apfs.journal.records import KINDS
from apfs.kernel.profile import PROFILES, Profile
from apfs.scenario.reader import gallery
from tests.conftest import TIMEOUT, apfs, let_in, sh


def test_version() -> None:
    """As click says it, without the time of importing click."""
    assert apfs("--version").stdout == f"apfs, version {package.__version__}\n"
    assert CliRunner().invoke(main, ["--version"]).stdout == apfs("--version").stdout
    assert {"click", "typing"}.isdisjoint(imported_by("--version"))


def imported_by(*arguments: str) -> set[str]:
    """Return the modules that a command imports, but for those that functions import."""
    command = [sys.executable, "-X", "importtime", "-m", "apfs", *arguments]
    told = subprocess.run(command, check=False, capture_output=True, text=True).stderr
    return {line.rpartition("|")[2].strip() for line in told.splitlines()}


@pytest.mark.parametrize("arguments", [["--help"], ["no-such-command"]])
def test_no_command_is_imported_before_it_is_used(arguments: list[str]) -> None:
    assert {name for name in imported_by(*arguments) if name.startswith("apfs.")} == {
        *("apfs.cli", "apfs.cli.ctrl_c", "apfs.cli.main", "apfs.cli.start", "apfs.cli.streams"),
        *("apfs.mounts", "apfs.mounts.interrupts"),
    }


def test_commands_are_the_modules_that_have_one() -> None:
    here = Path(package.__file__).parent / "cli"
    modules = {path.stem for path in here.glob("*.py") if "\ndef command(" in path.read_text()} - {"mount_helper"}
    assert set(COMMANDS) == modules
    for name in COMMANDS:
        assert main.commands[name].name == name
    assert main.commands.get("main") is None


def test_commands_are_listed_with_a_line_each() -> None:
    listed = apfs("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert [tuple(line.split(maxsplit=1)) for line in listed] == list(COMMANDS.items())


def test_wrong_command_brings_a_guess() -> None:
    assert "No such command 'moutn'" in apfs("moutn", status=2).stderr


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["mount"],
        ["umount"],
        ["scenario"],
        ["scenario", "list"],
        ["scenario", "show"],
        ["scenario", "validate"],
        ["migrate"],
        ["record"],
        ["doctor"],
        ["status"],
        ["journal"],
        ["completion"],
    ],
)
def test_help_pages(command: list[str]) -> None:
    text = apfs(*command, "--help").stdout
    assert text.startswith("Usage: ")
    assert apfs(*command, "-h").stdout == text


@pytest.mark.parametrize("command", ["mount", "umount", "migrate", "status", "journal", "doctor", "record"])
def test_help_pages_tell_the_exit_status(command: str) -> None:
    assert "EXIT STATUS" in apfs(command, "--help").stdout


def test_help_names_the_types_of_records() -> None:
    _, _, text = apfs("journal", "--help").stdout.partition("\n  TYPES\n")
    assert text.partition("\n\n")[0].split() == list(KINDS)


def test_wrong_usage() -> None:
    assert apfs("mount", status=2).stderr.startswith("Usage: ")
    assert apfs("nosuch", status=2).stderr


def test_scenario_list_and_show() -> None:
    lines = apfs("scenario", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(gallery())
    assert all(len(line.split()) > 3 for line in lines)
    assert apfs("scenario", "show", "default").stdout == gallery()["default"]
    assert "default" in apfs("scenario", "show", "nosuch", status=2).stderr


PRINTING = [
    "--help",
    "scenario list",
    "scenario show default",
    "completion bash",
    "doctor python",
    "doctor --json python",
]


@pytest.mark.parametrize("command", PRINTING)
@pytest.mark.parametrize(
    ("output", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_output_that_is_lost(command: str, output: str, reason: str) -> None:
    result = sh(f'"$1" -m apfs {command} {output}', sys.executable, status=1)
    assert result.stderr == f"apfs: standard output: {reason}\n"


@pytest.mark.parametrize("command", PRINTING)
def test_reader_who_has_gone_away(command: str) -> None:
    result = sh(f'"$1" -m apfs {command} | true', sys.executable)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("exec nosuch 2> /dev/full", 127),
        ("exec --scenario nosuch true 2> /dev/full", 125),
        ("mount /nosuch 2>&-", 2),
        ("mount --nosuch 2> /dev/full", 2),
    ],
)
def test_errors_that_are_lost(command: str, status: int) -> None:
    """What cannot be said does not change the status, and does not go elsewhere."""
    assert sh(f'"$1" -m apfs {command}', sys.executable, status=status).stdout == ""


def test_scenario_kernels() -> None:
    lines = apfs("scenario", "kernels").stdout.splitlines()
    assert lines[0] == "5.14  the oldest"
    assert [line.split()[0] for line in lines if line[0] != " "] == list(PROFILES)
    assert "6.1   useirq_parameter" in lines
    assert '      reset_model = "short"' in lines
    kernels = json.loads(apfs("scenario", "kernels", "--json").stdout)
    assert kernels["6.8"] == Profile.of("6.8").features()


def test_scenario_validate(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[qci]\ndomains = [4]\n[[card]]\nadapter = 5\ntype = "CEX8C"\n')
    bad.write_text(
        '[qci]\ndomains = [4]\n\n[[mdev]]\nuuid = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"\nadapters=[5]\ndomains=[4]\n'
    )
    assert (
        apfs("scenario", "validate", str(good)).stdout
        == f"{good}: valid; cards: 1, queues: 1 (1 bound), mediated devices: 0\n"
    )
    assert apfs("scenario", "validate", str(bad), status=1).stderr.startswith(
        f"apfs: {bad}:4: queue 05.0004 is reserved"
    )
    assert "No such file" in apfs("scenario", "validate", str(tmp_path / "none.toml"), status=1).stderr


def test_quickstart() -> None:
    """The README's first command: everything it shows is checked by itself, and its status tells."""
    script = __file__.removesuffix("tests/cli/test_commands.py") + "mount-examples/quickstart.sh"
    result = subprocess.run(
        [script], check=False, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert result.returncode == 0, result
    assert result.stdout.endswith("quickstart: done\n")


def test_set_up_says_what_root_has_to_install(tmp_path: Path) -> None:
    """An ordinary user of a machine where something is missing, who may not become root."""
    root = Path(__file__).parents[2]
    script = tmp_path / "mount-examples/setup.sh"
    script.parent.mkdir()
    shutil.copy(root / "mount-examples/setup.sh", script)
    let_in(tmp_path)
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    # Nobody is there who could type a password.
    said = subprocess.run(
        [*user, "setsid", "--wait", script, "mount", "no-such-package-of-debian"],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
    )
    assert said.returncode == 2, said
    *_, last = said.stderr.splitlines()
    assert re.fullmatch(
        r"setup: that did not work; root can install them by: apt-get install( \S+)* no-such-package-of-debian", last
    )
    assert not (tmp_path / ".venv").exists()
