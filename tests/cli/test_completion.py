"""Completion: what is offered, and the Tab key in interactive shells."""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click
import pytest
from click.shell_completion import get_completion_class

from apfs.cli.completion import SHELLS
from apfs.cli.main import COMMANDS, main
from apfs.cli.tab import known, script
from apfs.scenario.reader import gallery
from tests.conftest import TIMEOUT, UUID, apfs
from tests.tools.conftest import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SHARE = ROOT / "docs/share"
BIN = Path(sys.executable).parent
ENV = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def _complete(words: tuple[str, ...], dialect: str, *python: str) -> subprocess.CompletedProcess[str]:
    count = str(len(words)) if dialect == "bash" else words[-1]
    asked = {"_APFS_COMPLETE": f"{dialect}_complete", "COMP_WORDS": "\n".join(("apfs", *words)), "COMP_CWORD": count}
    command = [sys.executable, *python, str(BIN / "apfs")]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT, env={**ENV, **asked})


def ask(*words: str, dialect: str = "bash") -> list[str]:
    """Return what is offered for the last word, as the script of a shell gets it."""
    result = _complete(words, dialect)
    assert result.stderr == ""
    return result.stdout.strip("\n").splitlines()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two hosts between which a guest can migrate; one has a space in its name."""
    places = tmp_path / "a source", tmp_path / "target"
    for place in places:
        place.mkdir()
        apfs("mount", "--scenario", f"migration-{place.name[-6:]}", str(place))
    yield places
    for place in places:
        apfs("umount", "--lazy", str(place), status=None)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("mou",), ["plain,mount"]),
        (("scenario", ""), ["plain,kernels", "plain,list", "plain,show", "plain,validate"]),
        (("mount", "--sc"), ["plain,--scenario"]),
        (("mount", "--clock", ""), ["plain,real", "plain,manual"]),
        (("mount", "-s", "migration-s"), ["plain,migration-source"]),
        (("mount", "-s", "./x"), ["file,./x"]),
        (("mount", "/mnt"), ["dir,/mnt"]),
        (("scenario", "validate", "largest"), ["plain,largest"]),
        (("exec", "-s", "larg"), ["plain,largest"]),
        (("umount", "/nowhere"), ["dir,/nowhere"]),
        (("migrate", "/nowhere", "/nowhere", ""), []),
        (("migrate", "--send", "/nowhere", ""), []),
        (("migrate", "--send", "/nowhere", "uuid", "--", "setpr"), ["plain,setpriv"]),
        (("migrate", "--receive", "/nowhere", "uuid", "--", "cat", "/et"), ["file,/et"]),
        (("exec", "--", "setpr"), ["plain,setpriv"]),
        (("exec", "cat", "/et"), ["file,/et"]),
        (("completion", ""), [f"plain,{shell}" for shell in SHELLS]),
        (("no-such-command", "a", "-o", ""), ["plain,agent"]),
        (("journal", "--type", "re"), ["plain,refusal", "plain,reset"]),
        (("umount", "'unfinished"), ["dir,unfinished"]),
    ],
)
def test_offered(words: tuple[str, ...], offered: list[str]) -> None:
    assert ask(*words)[: len(offered) or None] == offered


def test_all_scenarios_are_offered_with_what_they_are_for() -> None:
    assert ask("scenario", "show", "") == [f"plain,{name}" for name in gallery()]
    described = ask("scenario", "show", "empty", dialect="fish")
    assert len(described) == 1
    assert len(described[0].split("\t")[1].split()) > 2


def test_mounts_and_mediated_devices_are_offered(pair: tuple[Path, Path]) -> None:
    source, target = map(str, pair)
    escaped = source.replace(" ", "\\ ")
    for words in (("umount",), ("migrate",), ("migrate", "/mnt"), ("exec", "--mount")):
        assert {f"plain,{source}", f"plain,{target}"} <= set(ask(*words, "", dialect="fish"))
    assert ask("umount", target[:-2]) == [f"plain,{target}"]
    assert ask("migrate", escaped, target, UUID[:4].upper()) == [f"plain,{UUID}"]
    assert ask("migrate", escaped, target, "0") == []
    assert ask("migrate", "--send", escaped, UUID[:4]) == [f"plain,{UUID}"]


def test_commands_are_offered_without_loading_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without what an installation for development loads: this checkout and click, and nothing that `site` adds.
    monkeypatch.setitem(ENV, "PYTHONPATH", f"{ROOT}:{Path(click.__file__).parents[1]}")
    result = _complete(("mou",), "bash", "-S", "-X", "importtime")
    assert result.stdout.splitlines() == ["plain,mount"]
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "apfs.cli.completion" in loaded
    assert loaded.isdisjoint({"pathlib", "shutil", "subprocess", "dataclasses"})


def test_mounting_is_not_loaded_for_completion() -> None:
    for words in (("scenario", "show", ""), ("umount", ""), ("exec", "")):
        told = _complete(words, "bash", "-X", "importtime").stderr
        loaded = {line.rpartition("|")[2].strip() for line in told.splitlines()}
        assert "apfs.cli.completion" in loaded
        assert loaded.isdisjoint({"pyfuse3", "trio", "rich", "tomlkit"})


@pytest.mark.parametrize("command", main.commands)
def test_options_are_offered_by_the_command_alone(command: str) -> None:
    result = _complete((command, "--"), "bash", "-X", "importtime")
    assert "plain,--help" in result.stdout.splitlines()
    # The command's own module is imported by a function, of which this list does not tell.
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert {name for name in loaded if name.startswith("apfs.")} <= {
        *("apfs.cli", "apfs.cli.main", "apfs.cli.start", "apfs.cli.streams", "apfs.cli.completion", "apfs.cli.hosts"),
        *("apfs.cli.ctrl_c", "apfs.cli.values", "apfs.mounts", "apfs.mounts.interrupts"),
    }


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self, shell: str, setup: str, home: Path, env: dict[str, str]) -> None:
        command = {
            "bash": "bash --rcfile bashrc -i",
            "zsh": "zsh -f -i",
            "fish": "fish --init-command='function fish_prompt; echo \"READY> \"; end'",
        }[shell]
        (home / "bashrc").write_text("PS1='READY> '\n")
        self._process = subprocess.Popen(
            ["script", "--quiet", "--command", command, "/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**ENV, "PROMPT": "READY> ", "HOME": str(home), "HISTFILE": "", **env},
            cwd=home,
        )
        self.seen = ""
        self.expect("READY> ")
        for line in setup.splitlines():
            self.type(f"{line}\n")
        self.type("echo is set' 'up\n")
        self.expect("is set up")

    def type(self, text: str) -> None:
        """Press keys."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def expect(self, text: str) -> None:
        """Read until a text that was not there before is shown."""
        assert self._process.stdout is not None
        start = len(self.seen)
        while text not in self.seen[start:]:
            ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT)
            assert ready, self.seen
            read = os.read(self._process.stdout.fileno(), 4096)
            assert read, self.seen
            self.seen += read.decode(errors="replace")

    def exit(self) -> None:
        """End the shell when it has done what was typed."""
        self.type("exit\n")
        self._process.communicate(timeout=TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.kill()  # the shell gets a hangup; no effect on one that has ended
        self._process.communicate()


COMPINIT = "autoload -U compinit; compinit -u -D"
SETUP: dict[tuple[str, str], tuple[str, dict[str, str]]] = {
    ("bash", "eval"): ('eval "$(apfs completion bash)"', {}),
    ("bash", "installed"): (". /usr/share/bash-completion/bash_completion", {"XDG_DATA_HOME": str(SHARE)}),
    ("zsh", "eval"): (f'{COMPINIT}; eval "$(apfs completion zsh)"', {}),
    ("zsh", "saved"): (f"mkdir f; apfs completion zsh > f/_apfs; fpath=($PWD/f $fpath); {COMPINIT}", {}),
    ("zsh", "installed"): (f"fpath=({SHARE}/zsh/site-functions $fpath); {COMPINIT}", {}),
    ("fish", "eval"): ("apfs completion fish | source", {}),
    ("fish", "installed"): ("", {"XDG_DATA_DIRS": f"{SHARE}:/usr/share"}),
}


@pytest.fixture
def terminal(tmp_path: Path) -> Callable[[str, str], Terminal]:
    """Return a function that starts a shell with completion set up by the user or as an installation does."""
    need(*SHELLS, "script")

    def start(shell: str, how: str) -> Terminal:
        setup, env = SETUP[shell, how]
        home = tmp_path / "home"
        home.mkdir()
        return Terminal(shell, setup, home, env)

    return start


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_leads_through_a_migration(
    terminal: Callable[[str, str], Terminal], pair: tuple[Path, Path], shell: str
) -> None:
    """Each command works only if all that was left to the Tab key has been completed."""
    source, target = pair
    with terminal(shell, "eval") as shown:
        shown.type("apfs scen\tvalid\tlarg\t\n")
        shown.expect("largest: valid; cards:")
        shown.type(f"apfs migr\t{source.parent}/a\t{target.parent}/targ\t669\t\n")
        shown.expect(f"{UUID}: migrated, ")
        shown.type(f"apfs umo\t--la\t{source.parent}/a\t\n")
        shown.exit()
    assert "Traceback" not in shown.seen
    assert str(source).replace(" ", "\\040") not in Path("/proc/self/mounts").read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_finds_a_device_of_a_mount_with_an_odd_name(
    terminal: Callable[[str, str], Terminal], tmp_path: Path, shell: str
) -> None:
    place = tmp_path / "z:b = c'd\\e"
    place.mkdir()
    apfs("mount", "--scenario", "migration-source", str(place))
    try:
        with terminal(shell, "eval") as shown:
            shown.type(f"apfs migrate --send={tmp_path}/z\t{UUID[:3]}\t")
            shown.expect(UUID[3:])
            shown.type("\x15\n")
            shown.exit()
    finally:
        apfs("umount", "--lazy", str(place))


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_finds_files_behind_an_equals_sign(
    terminal: Callable[[str, str], Terminal], tmp_path: Path, shell: str
) -> None:
    (tmp_path / "root of 07").mkdir()
    with terminal(shell, "eval") as shown:
        shown.type(f"apfs record --root={tmp_path}/ro\t")
        shown.expect("07/")
        shown.type("\x15\n")
        shown.exit()


@pytest.mark.parametrize(("shell", "how"), [*((shell, "installed") for shell in SHELLS), ("zsh", "saved")])
def test_installed_files_are_found_by_the_shell(terminal: Callable[[str, str], Terminal], shell: str, how: str) -> None:
    with terminal(shell, how) as shown:
        shown.type("apfs scen\tvalid\tlarg\t\n")
        shown.expect("largest: valid; cards:")
        shown.exit()


def _place(shell: str, words: tuple[str, ...], word: str) -> list[str]:
    """Return the arguments with which the script of a shell asks."""
    line = ("\n" if shell == "bash" else " ").join(("COMP_WORDS=apfs", *words, word))
    if shell == "fish":
        return ["_APFS_COMPLETE=fish_complete", line, f"COMP_CWORD={word}", "apfs"]
    return [line, f"COMP_CWORD={len(words) + 1}", f"_APFS_COMPLETE={shell}_complete", "apfs"]


def _answers_of_script(shell: str, questions: list[tuple[tuple[str, ...], str]]) -> list[str]:
    """Return what a script prints for words and the one after them; `asked` if it would ask apfs."""
    need(shell)
    instead = {"fish": "function env; echo asked; end"}.get(shell, "env() { echo asked; }")
    calls = (f"_apfs_ask {shlex.join(_place(shell, *question))}; echo '=='" for question in questions)
    # Without a terminal there is nothing that completes.
    text = re.split(r"\n(?:function )?_apfs_completion", script(main, shell))[0]
    return run_shell(shell, "\n".join([text, instead, *calls])).split("==\n")[:-1]


def run_shell(shell: str, text: str) -> str:
    result = subprocess.run([shell, "-c", text], check=True, capture_output=True, text=True, timeout=TIMEOUT, env=ENV)
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_know_commands_and_options(shell: str) -> None:
    """Exactly those that they would be told of."""
    kind = get_completion_class(shell)
    assert kind
    completer = kind(main, {}, "apfs", "_APFS_COMPLETE")
    entries = list(known(completer, main))
    questions = [
        (entry.words, word)
        for entry in entries
        for item in (*entry.items, None)
        for word in ({entry.start} if item is None else {item.value[:3], item.value})
    ]
    assert len(questions) > 200
    assert script(main, shell).count("_apfs_ask") == 2  # it is there, and is what click's function asks
    expected = [
        "".join(f"{completer.format_completion(item)}\n" for item in completer.get_completions(list(words), word))
        for words, word in questions
    ]
    assert _answers_of_script(shell, questions) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_ask_for_all_else(shell: str) -> None:
    questions = [
        (("mount",), ""),
        (("mount", "--clock"), ""),
        (("mount", "--clock"), "-"),
        (("mount", "/z"), "--s"),
        (("scenario", "show"), ""),
        (("scenario", "show"), "emp"),
        (("exec", "--"), "-"),
        (("nosuch",), "-"),
        (("nosuch",), ""),
        (("",), ""),
    ]
    assert _answers_of_script(shell, questions) == ["asked\n"] * len(questions)


def test_fish_completes_without_a_terminal() -> None:
    need("fish")
    script = "apfs completion fish | source; complete -C 'apfs mo'; complete -C 'apfs scenario show empt'"
    result = subprocess.run(["fish", "-c", script], check=True, capture_output=True, text=True, env=ENV)
    lines = result.stdout.splitlines()
    assert lines[0].split("\t")[0] == "mount"
    assert lines[1].split("\t")[0] == "empty"
    assert len(lines) == 2
    shown = run_shell("fish", "apfs completion fish | source; complete -C 'apfs doc'")
    assert shown == f"doctor\t{COMMANDS['doctor']}\n"


def test_unknown_shell() -> None:
    assert "'bash', 'zsh', 'fish'" in apfs("completion", "tcsh", status=2).stderr
