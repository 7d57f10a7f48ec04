"""The scripts of `apfs completion`: those of click, which ask `apfs` at every Tab, with a table of what never changes.

A script knows the commands and the options, so that Tab takes no time for them. For everything else it asks `apfs`. It
hands over the grammar of the command line, with which `apfs.cli.values` finds values without click; click is asked for
options behind other words, as some can be used only once.
"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPLACED = {
    "(env ": "(_apfs_ask ",
    'string split ","': 'string split --max 1 ","',
    "_path_files -": "compset -P '--*='; _path_files -",
    "#compdef apfs\n": "",
    "== loadautofunc": "== (loadautofunc|shfunc)",
}
"""What is different in the scripts of click.

Whom they ask, with the same arguments; commas in texts for fish; and for zsh, files in --name=file, its first line, and
when a script in fpath is asked: not only when it is loaded.
"""

_POSIX = """\
# Answers what never changes, and asks apfs for all else, with the grammar of its command line (apfs/cli/values.py).
_apfs_ask() {
    local word=${1##*SEPARATOR} place="${1%SEPARATOR*} $2" item
    local -a items=()
    case $word in (-*=*) place= ;; (-*) place+=" -" ;; esac
    case $place in
CASES
    (*)
        env _APFS_GRAMMAR=SYNOPSES "$@"
        return ;;
    esac
    for item in "${items[@]}"; do
        [[ $item != START"$word"* ]] || printf '%s\\n' "$item"
    done
}

"""
"""For bash and zsh, where the first arguments are COMP_WORDS=WORD... and COMP_CWORD=NUMBER."""

_FISH = """\
# Answers what never changes, and asks apfs for all else, with the grammar of its command line (apfs/cli/values.py).
function _apfs_ask
    set -l word (string replace -- COMP_CWORD= '' $argv[3])
    set -l literal (string escape --style=regex -- "$word")
    set -l place (string replace --regex -- "$literal\\$" '' "$argv[2]")
    string match --quiet -- '-*' "$word"; and set place "$place-"
    string match --quiet -- '-*=*' "$word"; and set place ""
    set -l items
    switch "$place"
CASES
    case '*'
        env _APFS_GRAMMAR=SYNOPSES $argv
        return
    end
    string match --regex -- "^plain,$literal.*" $items
end

"""
"""The second argument is COMP_WORDS=LINE up to the cursor, the third one COMP_CWORD=WORD."""


class Known(NamedTuple):
    """What can follow some words at once: either commands or options."""

    words: tuple[str, ...]
    start: str
    """What they start with: a dash, or anything else."""
    items: list[CompletionItem]


def known(completer: ShellComplete, command: click.Command, words: tuple[str, ...] = ()) -> Iterator[Known]:
    """Yield what can follow a command, and each in it."""
    yield Known(words, "-", completer.get_completions(list(words), "-"))
    if isinstance(command, click.Group):
        yield Known(words, "", completer.get_completions(list(words), ""))
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, name  # noqa: S101 -- the group lists it
            yield from known(completer, found, (*words, name))


def grammar(command: click.Command, words: tuple[str, ...] = (), parent: click.Context | None = None) -> Iterator[str]:
    """Yield the lines that `apfs.cli.values` reads, one for each command that takes no other one."""
    context = click.Context(command, parent, **command.context_settings)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, name  # noqa: S101 -- the group lists it
            yield from grammar(found, (*words, name), context)
        return
    options, arguments = [], []
    for param in command.get_params(context):
        if isinstance(param, click.Argument):
            arguments.append(_offered(context, param) + ("..." if param.nargs < 0 else ""))
        elif isinstance(param, click.Option) and not param.hidden:
            value = "" if param.is_flag else f"={_offered(context, param)}"
            options.append(",".join((*param.opts, *param.secondary_opts)) + value)
    ending = [] if context.allow_interspersed_args else ["[--]"]
    yield " ".join((f"{' '.join(words)}:", *options, *ending, *arguments))


def _offered(context: click.Context, param: click.Parameter) -> str:
    """Return the rule for values of a parameter, or all values."""
    rule = getattr(param._custom_shell_complete, "rule", None)  # noqa: SLF001 -- click has no public name for it
    if rule is not None:
        return f"<{rule.__name__}>"
    items = param.shell_complete(context, "")
    kinds = {"file": "<files>", "dir": "<directories>"}
    return "|".join(kinds.get(item.type, item.value) for item in items) or "<nothing>"


def script(command: click.Command, shell: str) -> str:
    """Return the text that makes a shell, one of those that click knows, complete `apfs`."""
    kind = get_completion_class(shell)
    assert kind is not None, shell  # noqa: S101 -- click knows it
    completer = kind(command, {}, "apfs", "_APFS_COMPLETE")
    source = completer.source()
    table = list(known(completer, command))
    for theirs, ours in _REPLACED.items():
        source = source.replace(theirs, ours)
    function = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](completer, table)
    return function.replace("SYNOPSES", quote("\n".join(("", *grammar(command), "")))) + source


def _items(completer: ShellComplete, entry: Known) -> str:
    return " ".join(quote(completer.format_completion(item)) for item in entry.items)


def _posix(completer: ShellComplete, table: list[Known], separator: str, start: str) -> str:
    def place(entry: Known) -> str:
        line = separator.join(("COMP_WORDS=apfs", *entry.words))
        return quote(f"{line} COMP_CWORD={len(entry.words) + 1}{entry.start and ' -'}")

    cases = [f"    ({place(entry)}) items=({_items(completer, entry)}) ;;" for entry in table]
    text = _POSIX.replace("SEPARATOR", _ansi(separator)).replace("START", _ansi(start))
    return text.replace("CASES", "\n".join(cases))


def _ansi(text: str) -> str:
    return "$'" + text.replace("\n", "\\n") + "'"


def _bash(completer: ShellComplete, table: list[Known]) -> str:
    return _posix(completer, table, "\n", "plain,")


def _zsh(completer: ShellComplete, table: list[Known]) -> str:
    return "#compdef apfs\n" + _posix(completer, table, " ", "plain\n")  # in fpath, it has to be the first line


def _fish(completer: ShellComplete, table: list[Known]) -> str:
    def case(entry: Known) -> str:
        line = " ".join(("COMP_WORDS=apfs", *entry.words, entry.start))
        return f"    case {quote(line)}\n        set items {_items(completer, entry)}"

    return _FISH.replace("CASES", "\n".join(map(case, table)))
