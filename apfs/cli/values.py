"""The values that the Tab key offers, found without click: importing that takes longer than all else at a Tab.

The scripts of `apfs completion` hand over what click knows of the command line, in `_APFS_GRAMMAR`: a line for each
command, with all options and arguments, their names and what is offered for them.

    exec: --scenario,-s=<scenarios_and_files> --net=private|host --keep-id [--] <commands>...

A name in angle brackets is a rule, a function of this module, which click's completers ask, too. `=` is missing after
options without a value. `[--]` means that options end at the first argument. What is not in the grammar, and anything
unusual, is left to click. `python -X importtime` shows what this imports: it should remain next to nothing.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Item = tuple[str, str, str | None]
    """A type of click's scripts (plain, dir, file), a value, and what it is."""
    Rule = Callable[[Mapping[str, object], Sequence[str], str], list[Item]]
    """Takes values of options by their first names, arguments, and the word to complete."""

LOCAL = 3
"""How many arguments `apfs migrate` has without --send and --receive."""


def _matching(values: Iterable[str], incomplete: str) -> list[Item]:
    values = (value for value in values if "\n" not in value and "\t" not in value)  # which the scripts cannot read
    return [("plain", value, None) for value in values if value.startswith(incomplete)]


def nothing(_options: Mapping[str, object], _arguments: Sequence[str], _incomplete: str) -> list[Item]:
    """Offer nothing."""
    return []


def files(_options: Mapping[str, object], _arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Let the shell offer files."""
    return [("file", incomplete, None)]


def directories(_options: Mapping[str, object], _arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Let the shell offer directories."""
    return [("dir", incomplete, None)]


def scenarios(_options: Mapping[str, object], _arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Offer the scenarios of the gallery with what they are for."""
    from apfs.scenario.gallery import descriptions

    return [("plain", name, text) for name, text in descriptions().items() if name.startswith(incomplete)]


def scenarios_and_files(options: Mapping[str, object], arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Offer scenarios, and files for what cannot be a scenario."""
    return scenarios(options, arguments, incomplete) or files(options, arguments, incomplete)


def _mounted(incomplete: str) -> list[Item]:
    from apfs.mounts import mountinfo

    try:
        places = dict.fromkeys(
            place for _, place, fstype in mountinfo.read(mountinfo.FILE) if fstype == mountinfo.FSTYPE
        )
    except OSError:
        return []
    return _matching(places, incomplete)


def mounted(options: Mapping[str, object], arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Offer the places where an apfs is mounted, and directories for any other text."""
    return _mounted(incomplete) or directories(options, arguments, incomplete)


def mounted_and_files(options: Mapping[str, object], arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Offer the places where an apfs is mounted, and files for any other text."""
    return _mounted(incomplete) or files(options, arguments, incomplete)


def _uuids(directory: str, incomplete: str) -> list[Item]:
    try:
        names = os.listdir(os.path.expanduser(directory))  # noqa: PTH111, PTH208 -- without pathlib
    except OSError:
        return []
    return _matching(names, incomplete.lower())


def guests(options: Mapping[str, object], _arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Offer the running guests of the mount that --mount names."""
    return _uuids(f"{options.get('--mount') or '.'}/guests", incomplete)


def programs(_options: Mapping[str, object], _arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Offer the commands in PATH, and files for a path."""
    if "/" in incomplete:
        return [("file", incomplete, None)]
    found: set[str] = set()
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        try:
            with os.scandir(directory or ".") as entries:
                found |= {entry.name for entry in entries if entry.name.startswith(incomplete) and entry.is_file()}
        except OSError:
            continue
    return _matching(sorted(found), incomplete)


def commands(options: Mapping[str, object], arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Offer what can follow these words of a command: commands for the first one, and files for all others."""
    rule = files if arguments else programs
    return rule(options, arguments, incomplete)


def operands(options: Mapping[str, object], arguments: Sequence[str], incomplete: str) -> list[Item]:
    """Offer what comes next for `apfs migrate`: two mounts, a device of the first; at an end a device, a command."""
    end = options.get("--send") or options.get("--receive")
    if end and arguments:
        return commands(options, arguments[1:], incomplete)
    if not end and len(arguments) < LOCAL - 1:
        return mounted(options, arguments, incomplete)
    if not end and len(arguments) >= LOCAL:
        return []
    return _uuids(f"{end or arguments[0]}/dev/vfio-ap", incomplete)


_RULES: list[Rule] = [nothing, files, directories, scenarios, scenarios_and_files, mounted, mounted_and_files]
_RULES += [guests, programs, commands, operands]
_BY_NAME = {rule.__name__: rule for rule in _RULES}


class _Grammar:
    """A line of the grammar, without the name of the command."""

    def __init__(self, line: str) -> None:
        self.options: dict[str, tuple[str, str]] = {}
        """By each name: the first name, and what is offered for the value; nothing if it takes none."""
        self.arguments: list[str] = []
        self.ending = False
        for part in line.split():
            names, _, kind = part.partition("=")
            if part == "[--]":
                self.ending = True
            elif part.startswith("-"):
                first, *others = names.split(",")
                self.options |= dict.fromkeys((first, *others), (first, kind))
            else:
                self.arguments.append(part)

    def next(self, words: list[str], incomplete: str) -> list[Item] | None:
        """Return what is offered after these words; None for options and for unusual forms of options."""
        start = ""
        if self._joined(incomplete):
            name, _, incomplete = incomplete.partition("=")
            words, start = [*words, name], f"{name}="
        read = self._read(words)
        if read is None:
            return None
        kind, options, arguments, ended = read
        if kind:
            incomplete = incomplete.removeprefix("=")  # bash makes three words of --name=value
        if incomplete == "=" or (incomplete.startswith("-") and not ended):
            return None
        items = _offered(kind or self._argument(len(arguments)), options, arguments, incomplete)
        return items and [(type_, f"{start}{value}", text) for type_, value, text in items]

    def _joined(self, word: str) -> bool:
        """Whether a word is --name=value."""
        name, equals, _ = word.partition("=")
        return bool(equals and name.startswith("--") and self.options.get(name, ("", ""))[1])

    def _read(self, words: list[str]) -> tuple[str, dict[str, object], list[str], bool] | None:
        """Return what is offered for the value that is missing, values of options, arguments, if these are the rest."""
        options: dict[str, object] = {}
        arguments: list[str] = []
        name, kind, ended = "", "", False
        for word in words:
            if kind and word == "=":
                continue
            if kind:
                options[name], kind = word, ""
            elif ended or not word.startswith("-") or word == "-":
                arguments.append(word)
                ended |= self.ending
            elif word == "--":
                ended = True
            elif word in self.options:
                name, kind = self.options[word]
            elif self._joined(word):
                long, _, value = word.partition("=")
                options[self.options[long][0]] = value
            else:
                return None
        return kind, options, arguments, ended

    def _argument(self, count: int) -> str:
        """Return what is offered for the argument after so many."""
        if count < len(self.arguments):
            return self.arguments[count].removesuffix("...")
        repeated = bool(self.arguments) and self.arguments[-1].endswith("...")
        return self.arguments[-1].removesuffix("...") if repeated else "<nothing>"


def _offered(kind: str, options: dict[str, object], arguments: list[str], incomplete: str) -> list[Item] | None:
    if not kind.startswith("<"):
        return _matching(kind.split("|"), incomplete)
    rule = _BY_NAME.get(kind[1:-1])
    return rule(options, arguments, incomplete) if rule else None


def offered(grammar: str, words: list[str], incomplete: str) -> list[Item] | None:
    """Return what is offered after the words of a command line, without its program; None if only click knows."""
    for line in grammar.splitlines():
        command, _, parameters = line.partition(":")
        name = command.split()
        if name and words[: len(name)] == name:
            return _Grammar(parameters).next(words[len(name) :], incomplete)
    return None


def _escaped(value: str, quote: str) -> str:
    """Return a value with what is special for bash escaped: bash inserts what it gets as it is; zsh and fish do that.

    Also what starts a new word for its Tab key only, such as a colon. `quote` is the open quotation mark, if any.
    """
    if quote == "'":
        value = value.replace("'", "'\\''")
    elif quote:
        value = "".join(f"\\{char}" if char in '"\\$`' else char for char in value)
    else:
        value = "".join(char if char.isalnum() or char in "_%+,./-" else f"\\{char}" for char in value)
    return value.replace("\\", "\\\\")  # of two backslashes, the script's `read` takes one away


def formatted(shell: str, item: Item, quote: str = "") -> str:
    """Return an item as the script of a shell expects it (`format_completion` of click.shell_completion)."""
    kind, value, text = item
    if shell == "bash":
        return f"{kind},{_escaped(value, quote)}"
    if shell == "zsh":
        return f"{kind}\n{value.replace(':', chr(92) + ':') if text else value}\n{text or '_'}"
    return f"{kind},{value}\t{text}" if text else f"{kind},{value}"


def split(text: str) -> list[str]:
    """Return the words of a line, the last of which may be unfinished (split_arg_string of click)."""
    if not any(char in text for char in "'\"\\"):
        return [word for word in text.translate({ord(char): " " for char in "\t\r\n"}).split(" ") if word]
    from shlex import shlex

    found: list[str] = []
    words = shlex(text, posix=True)
    words.whitespace_split, words.commenters = True, ""
    try:
        found.extend(words)
    except ValueError:
        found.append(words.token)
    return found


def read(asked: Mapping[str, str]) -> tuple[list[str], str]:
    """Return what a script says in its environment: the words before the one to complete, without the program; it."""
    words = split(asked["COMP_WORDS"])[1:]
    if asked["_APFS_COMPLETE"] == "fish_complete":
        incomplete = asked["COMP_CWORD"] and split(asked["COMP_CWORD"])[0]
        return (words[:-1] if incomplete and words[-1:] == [incomplete] else words), incomplete
    count = int(asked["COMP_CWORD"])
    return words[: count - 1], words[count - 1] if count <= len(words) else ""


def answer(asked: Mapping[str, str]) -> str | None:
    """Return the lines that a script asks for in its environment; None if only click knows them."""
    items = offered(asked["_APFS_GRAMMAR"], *read(asked))
    if items is None:
        return None
    shell = asked["_APFS_COMPLETE"].removesuffix("_complete")
    last = asked["COMP_WORDS"].rpartition("\n")[2]
    quote = last[:1] if last[:1] in ("'", '"') else ""
    return "".join(f"{formatted(shell, item, quote)}\n" for item in items)
