"""What no scenario can do to whoever reads it: size, depth and work have limits, and each has a clear message."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import apfs
from apfs.scenario.limits import MOST, MOST_WITH_LINES
from apfs.scenario.model import ScenarioError
from apfs.scenario.reader import load, loads

CARDS = '[qci]\ndomains = "0-255"\n[[card]]\nadapters = "0-255"\ntype = "CEX8C"\n'
QUEUES = '[[queue]]\nadapters = "0-255"\ndomains = "0-255"\n'
DEEP = "more than 16 arrays, tables or parts of a key in each other"
DIGITS = "a number has thousands of digits"
HUGE = "max_adapter: expected a number in 0..255, not 0xf"
LONG = f"longer than {MOST} characters"
CASES: dict[str, tuple[str, str]] = {
    "deep array": ("x = " + "[" * 100_000, DEEP),
    "deep array, closed": ("x = " + "[" * 500 + "]" * 500, DEEP),
    "deep array behind quotes": ('x = ["""a"""", ' + "[" * 100_000, DEEP),
    "deep array behind single quotes": ("x = ['''a''''', " + "[" * 100_000, DEEP),
    "deep table": ("x = " + "{a=" * 50_000, DEEP),
    "deep key": (".".join("a" * 400_000) + " = 1", DEEP),
    "deep header": (f"[{'.'.join('a' * 50_000)}]", DEEP),
    "quoted deep key": ('"a".' * 100_000 + "b = 1", DEEP),
    "unclosed texts": ('"""' * 100_001, ""),
    "decimal number": ("[qci]\nmax_adapter = " + "9" * 5000, DIGITS),
    "hex number": ("[qci]\nmax_adapter = 0x" + "f" * 1_000_000, HUGE),
    "number in a text": ('[qci]\ndomains = "0-' + "9" * 5000 + '"', "expected a number or a range"),
    "10 MB": ("# " + "x" * 10_000_000, LONG),
    "many lines": ("\n" * (MOST - 3) + "x=1", "x: unknown key 'x'"),
    "many numbers": ("[qci]\ndomains = [" + "1," * 40_000 + "]", "at most 256 numbers and ranges, not 40000"),
    "many ranges": ("[qci]\ndomains = [" + '"0-255",' * 20_000 + "]", "at most 256 numbers and ranges, not 20000"),
    "many cards": ("[[card]]\nadapter=1\ntype='CEX8C'\n" * 5_000, "adapter 1 is described twice"),
    "many queues": (CARDS + QUEUES * 1000, "more than 131072 queues are described"),
    "many devices": ("[[mdev]]\n" * 20_000, "there are 20000 of them, more than 1024"),
    "many keys": ("\n".join(f"k{number}=1" for number in range(20_000)), "k0: unknown key 'k0'"),
    "long word": (f'driver = "{"x" * 200_000}"', "driver: expected one of none, v2, v4, next, not 'xxx"),
}


PROGRAM = """
import json, pathlib, sys
from apfs.scenario.model import ScenarioError
from apfs.scenario.reader import load
for file in sys.argv[1:]:
    try: load(file)
    except ScenarioError as error: print(json.dumps(error.reason))
    else: print(json.dumps(None))
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Read all of it in one process that may have 512 MiB; the limit of time only keeps defects from hanging a run."""
    place = tmp_path_factory.mktemp("scenarios")
    files = [place / f"{number}.toml" for number in range(len(CASES))]
    for file, (text, _) in zip(files, CASES.values(), strict=True):
        file.write_text(text)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))

    environment = {**os.environ, "PYTHONPATH": str(Path(apfs.__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, preexec_fn=limit, env=environment)
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_messages(messages: dict[str, str], case: str) -> None:
    assert CASES[case][1] in messages[case]
    assert len(messages[case]) < 500


def test_depth_is_told_with_its_line_and_not_seen_in_texts_and_comments() -> None:
    with pytest.raises(ScenarioError, match=f"^s:3: {DEEP}$"):
        loads("# [[[[[[[[[[[[[[[[[[[[[\n\nx = [[[[[[[[[[[[[[[[[[", "s")
    dots = "..................."
    text = f'name = "{dots}\\"{dots}"\ndescription = """{dots}\n"{dots}"""\n[qci] # {dots}\ndomains = [{"1," * 40}]\n'
    assert loads(text).name == f'{dots}"{dots}'
    assert loads(f"name = '{dots}'\ndescription = '''\n[[[[{dots}'{dots}'''").name == dots


def test_lines_of_mistakes_are_told_in_all_but_the_longest() -> None:
    ordinary = "# x\n" * 1000
    with pytest.raises(ScenarioError, match=r"^scenario:1001: unknown key 'nam'"):
        loads(f"{ordinary}nam = 1")
    with pytest.raises(ScenarioError, match=r"^scenario: qci.domains: domains: expected a number"):
        loads("#" * MOST_WITH_LINES + "\n[qci]\ndomains = 256")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/full"])
def test_a_file_without_an_end(name: str) -> None:
    with pytest.raises(ScenarioError, match=LONG):
        load(name)
