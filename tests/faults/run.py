"""The long form of the faults: `python -m tests.faults.run [MINUTES] [--seed N] [KIND...]`.

The tests try some system calls of each kind; this tries all of them that change something, in a random order, as far as
the time allows, and prints a row of the table in docs/reliability.md for each kind. Between two such calls it makes no
difference when a process is killed: tests/faults/changes.c says which they are.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from random import Random

from tests.faults.kinds import KINDS
from tests.faults.points import Commands, compile_program


def sweep(kind: str, seconds: float, random: Random) -> int:
    """Try calls of a kind for a time; print how many, and return how many failed."""
    tried = failed = missed = 0
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        commands = Commands(compile_program(place), place / "tmp")
        commands.tmp.mkdir()
        before, tempfile.tempdir = tempfile.tempdir, str(commands.tmp)  # where the next command sweeps
        stack.callback(setattr, tempfile, "tempdir", before)
        of = KINDS[kind](commands, stack)
        calls = list(range(of.first, of.whole.changes + 1 - of.spare))
        random.shuffle(calls)
        until = time.monotonic() + seconds
        for call in calls:
            if time.monotonic() > until:
                break
            tried += 1
            try:
                fault = of.fault(call)
                missed += not fault.met(of.attempt(fault))
            except Exception:  # noqa: BLE001 -- that is what is looked for
                failed += 1
                print(f"{kind}, call {call}:\n{traceback.format_exc()}", flush=True)
                for left in commands.tmp.iterdir():  # so that the next one is not blamed
                    subprocess.run(["umount", "--lazy", left / "host"], check=False, capture_output=True)
                    subprocess.run(["rm", "--recursive", "--force", left], check=True)
    print(f"| {kind} | {of.whole.calls} | {len(calls)} | {tried - missed} | {missed} | {failed} |", flush=True)
    return failed


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10, help="for all kinds together")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"any of {', '.join(KINDS)}; all of them if none")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kinds = arguments.kinds or list(KINDS)
    random = Random(arguments.seed)  # noqa: S311 -- no secrets
    print("| kind | calls | of these change something | tried | not reached | failed |", flush=True)
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    failed = sum(sweep(kind, arguments.minutes * 60 / len(kinds), random) for kind in kinds)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
