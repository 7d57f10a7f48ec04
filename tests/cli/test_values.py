"""What `apfs` offers for values without click: the same as click, in every place, as each shell wants it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import pytest
from click.shell_completion import get_completion_class, split_arg_string
from hypothesis import given
from hypothesis import strategies as st

from apfs.cli import values
from apfs.cli.completion import SHELLS
from apfs.cli.main import COMMANDS, main
from apfs.cli.tab import grammar, script
from apfs.mounts import mountinfo
from tests.conftest import TIMEOUT, UUID
from tests.tools.conftest import need

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent
SCENARIO = ("show", "validate")
GRAMMAR = "\n".join(grammar(main))
ODD = ["/m/a b", "/m/a:b", "/m/back\\slash", "/m/quo'te", '/m/dou"ble', "/m/$x*?", "/m/\u00e9\u20ac", "/m/a,b", "/m/-z"]


class Place(NamedTuple):
    """Words of a command line after which a value is expected."""

    words: tuple[str, ...]
    of: str
    """The name of the option or argument."""


def places(command: click.Command = main, words: tuple[str, ...] = ()) -> Iterator[Place]:
    """Yield every place: the value of each option, and each argument, also behind others and behind options."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found
            yield from places(found, (*words, name))
        return
    params = command.get_params(context)
    options = [param for param in params if isinstance(param, click.Option) and not param.hidden]
    valued = [option for option in options if not option.is_flag]
    flags = [(name,) for option in options if option.is_flag for name in option.opts + option.secondary_opts]
    given = [(name, value) for option in valued for name, value in zip(option.opts, ("/m/v", "-v"), strict=False)]
    yield from (Place((*words, name), option.opts[0]) for option in valued for name in option.opts)
    yield from (Place((*words, *given[0], name), option.opts[0]) for option in valued for name in option.opts)
    for before in ((), *flags, *given, ("--",), *([(*flags[0], *given[-1])] if given else ())):
        for arguments in ((), ("/m/one",), ("/m/one", "/m/two"), ("/m/one", "/m/two", UUID), ("1", "2", "3", "4")):
            yield Place((*words, *before, *arguments), "argument")


PLACES = list(dict.fromkeys(places()))
RIGHT_BEHIND = [
    place
    for place in PLACES
    if len(place.words) <= 2 + (place.words[0] == "scenario") and place.words[-1] in (place.of, *COMMANDS, *SCENARIO)
]
"""Arguments right behind a command, and values of its options by their first names right behind that."""


def environment(shell: str, words: tuple[str, ...], incomplete: str) -> dict[str, str]:
    """Return what the script of a shell asks with."""
    line = ("\n" if shell == "bash" else " ").join(map(shlex.quote, ("apfs", *words)))
    last = incomplete and shlex.quote(incomplete)
    count = last if shell == "fish" else str(len(words) + 1)
    asked = {"_APFS_COMPLETE": f"{shell}_complete", "COMP_WORDS": f"{line} {last}", "COMP_CWORD": count}
    return {**asked, "_APFS_GRAMMAR": GRAMMAR}


def by_click(shell: str, place: Place, incomplete: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the lines that click offers."""
    kind = get_completion_class(shell)
    assert kind
    for name, value in environment(shell, place.words, incomplete).items():
        monkeypatch.setenv(name, value)
    lines = kind(main, {}, "apfs", "_APFS_COMPLETE").complete()
    return lines and f"{lines}\n"


def offered(*words: str, dialect: str = "fish") -> list[str] | None:
    """Return what is offered for the last of some words without click."""
    lines = values.answer(environment(dialect, words[:-1], words[-1]))
    return None if lines is None else lines.splitlines()


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Mounts with odd names are what /proc/self/mountinfo has, and nothing else is in PATH than two programs."""
    file = tmp_path / "mountinfo"
    octal = re.compile(r"[\s\\]")
    escaped = (octal.sub(lambda found: f"\\{ord(found[0]):03o}", place) for place in ODD)
    file.write_text("".join(f"36 35 0:45 / {place} rw - fuse.apfs default rw\n" for place in escaped))
    monkeypatch.setattr(mountinfo, "FILE", str(file))
    for name in ("one", "two words"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).touch()
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}/bin")
    return file


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.usefixtures("mounts")
def test_values_are_those_of_click(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PLACES) > 300
    seen: set[str] = set()
    for place in PLACES:
        for incomplete in ("", "/m/a ", "m", "o b"):
            expected = by_click(shell, place, incomplete, monkeypatch)
            assert values.answer(environment(shell, place.words, incomplete)) == expected, (place, incomplete)
            seen |= set(expected.splitlines())
    assert len(seen) > 60


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_get_values_without_click(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(shell)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    begun = {"--scenario": "mig", "--qemu": "setp", "--libvirtd": "setp"}  # what has few answers on any machine
    begun |= dict.fromkeys(("argument", "--mount", "--send", "--receive"), "/m/")
    asked = [(place, begun.get(place.of, "")) for place in RIGHT_BEHIND]
    calls = []
    for place, incomplete in asked:
        env = environment(shell, place.words, incomplete)
        keys = ("_APFS_COMPLETE", "COMP_WORDS", "COMP_CWORD")
        order = keys if shell == "fish" else (*keys[1:], keys[0])
        calls.append(f"_apfs_ask {shlex.join(f'{key}={env[key]}' for key in order)} apfs; echo '=='")
    text = re.split(r"\n(?:function )?_apfs_completion", script(main, shell))[0]
    (tmp_path / "click.py").write_text("raise SystemExit('click was imported')")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    result = subprocess.run(
        [shell, "-c", "\n".join([text, *calls])],
        check=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.stderr == ""
    expected = [by_click(shell, place, incomplete, monkeypatch) for place, incomplete in asked]
    assert result.stdout.split("==\n")[:-1] == expected


@given(st.text("ab '\"\\\\\t\n\r\x0b\u00a0#=-"))
def test_words_are_those_of_click(text: str) -> None:
    assert values.split(text) == split_arg_string(text)


@pytest.mark.parametrize("words", [("umount",), ("exec",), ("mount", "-s"), ("migrate", "a", "b")])
def test_values_come_without_what_takes_long(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", str(BIN / "apfs")]
    env = {**os.environ, **environment("bash", words, "")}
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stderr
    loaded = set(re.findall(r"(\S+)\n", told.partition("apfs.cli.start\n")[2]))
    assert "apfs.cli.values" in loaded
    light = {"apfs.mounts", "apfs.mounts.mountinfo", "apfs.scenario", "apfs.scenario.gallery"}
    assert loaded <= {"apfs.cli.values", *light}


@pytest.mark.usefixtures("mounts")
def test_mount_points_with_odd_names() -> None:
    assert offered("umount", "") == [f"plain,{place}" for place in ODD]
    assert offered("umount", "/m/a ") == ["plain,/m/a b"]
    assert offered("umount", "/m/back\\") == ["plain,/m/back\\slash"]
    assert offered("umount", "/m/a:", dialect="zsh") == ["plain", "/m/a:b", "_"]


@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.usefixtures("mounts")
def test_bash_inserts_words_that_are_mount_points(quote: str) -> None:
    asked = environment("bash", ("umount",), "")
    lines = values.answer({**asked, "COMP_WORDS": f"apfs\numount\n{quote}/m/"})
    assert lines
    script = """while IFS=, read type value; do eval "printf '%s\\n' $0$value$0"; done"""
    command = ["/bin/bash", "-c", script, quote]
    shown = subprocess.run(command, input=lines, check=True, capture_output=True, text=True)
    assert shown.stdout.splitlines() == ODD


def test_mount_points_that_no_line_can_hold(mounts: Path) -> None:
    mounts.write_text("".join(f"36 35 0:45 / /m/{name} rw - fuse.apfs x rw\n" for name in (r"a\012b", r"a\011b", "ab")))
    assert offered("umount", "") == ["plain,/m/ab"]
    assert offered("umount", "/m/a\n") == ["dir,/m/a", ""]


def test_directories_are_offered_without_mounts_and_without_proc(mounts: Path) -> None:
    mounts.write_text("36 35 0:45 / /m/z rw - ext4 /dev/vda rw\n")
    assert offered("status", "") == ["dir,"]
    mounts.unlink()
    assert offered("status", "/m") == ["dir,/m"]
    assert offered("report", "/m") == ["file,/m"]


@pytest.mark.parametrize("place", ["z", "~/z", "z z"])
def test_devices_and_guests_of_a_mount(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / place.removeprefix("~/")
    (root / "guests" / UUID).mkdir(parents=True)
    (root / "dev/vfio-ap" / UUID).mkdir(parents=True)
    for words in (
        *(("exec", "--mount", place, "--guest"), ("exec", "-m", "other", "-m", place, "-g", "x", "-g")),
        *(("migrate", place, "b"), ("migrate", "--check", place, "b"), ("migrate", "--send", place)),
    ):
        assert offered(*words, UUID[:6].upper()) == [f"plain,{UUID}"], words
        assert offered(*words, "0") == []
    assert offered("migrate", "nosuch", "b", "") == []


def test_command_lines_of_other_programs_are_theirs() -> None:
    """What follows the first word is not for apfs, whatever it looks like."""
    for words in (
        ("exec", "grep", "-s"),
        ("exec", "-m", "/z", "ls", "--net"),
        ("agent", "sh", "-c"),
        ("exec", "cat", "--"),
    ):
        assert offered(*words, "") == ["file,"]
    assert offered("exec", "ls", "-") == ["file,-"]
    assert offered("qemu", "--", "-kernel", "/x") == ["file,/x"]
    assert offered("agent", "apfs", "mou") == ["file,mou"]


def test_options_with_their_values_in_one_word() -> None:
    assert offered("mount", "--clock=r") == ["plain,--clock=real"]
    assert offered("mount", "--clock", "=", "r", dialect="bash") == ["plain,real"]
    assert offered("mount", "--clock", "=", dialect="bash") == ["plain,real", "plain,manual"]
    assert offered("record", "--root=/x") == ["dir,--root=/x"]
    assert offered("libvirtd", "-s", "x", "--libvirtd=setp") == ["plain,--libvirtd=setpriv"]
    assert offered("mount", "--clock=real", "/m") == ["dir,/m"]
    assert offered("exec", "cp", "--bind=/x") == ["file,--bind=/x"]


def test_programs_are_offered_for_options() -> None:
    for words in (("libvirtd", "--libvirtd"), ("qemu", "--qemu"), ("libvirtd", "--tcp", "1", "--libvirtd")):
        assert "plain,setpriv" in (offered(*words, "setp") or [])
        assert offered(*words, "/x") == ["file,/x"]


@pytest.mark.parametrize(
    "words",
    [
        *[
            ("exec", "-s", "x", "--ne"),
            ("exec", "--net", "-"),
            ("exec", "--keep-id=p", ""),
            ("exec", "--keep-id=", ""),
            ("exec", "-sx", ""),
        ],
        *[("mount", "="), ("mount", "--ready-fd", ""), ("mou", ""), ("", ""), ("--version", "")],
        *[("scenario", "x", ""), ("scenario", "")],
    ],
)
def test_all_else_is_left_to_click(words: tuple[str, ...]) -> None:
    assert offered(*words) is None


def test_a_script_of_another_version_is_answered() -> None:
    asked = environment("bash", ("umount",), "")
    assert values.answer({**asked, "_APFS_GRAMMAR": "umount: <later>"}) is None
    assert values.answer({**asked, "_APFS_GRAMMAR": "umount: <files>"}) == "file,\n"
