"""Tests which capabilities of apfs work here, and determines what is missing for the others."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apfs.kernel.profile import NEWEST
from apfs.mounts import environment, server, table
from apfs.sandbox import compose, linux
from apfs.sandbox.uevents import NETLINK_KOBJECT_UEVENT
from apfs.testing.mounted import MountedHost
from apfs.vfio import uapi
from apfs.vmm import emulator

if TYPE_CHECKING:
    from collections.abc import Collection

    from apfs.mounts.environment import Facts, Problem

CAPABILITIES = {
    "python": "hosts in Python, without a mount",
    "mount": "apfs mount",
    "allow-other": "apfs mount --allow-other",
    "exec": "apfs exec, with a private network",
    "uevents": "uevents inside apfs exec",
    "vfio": "VFIO ioctls inside apfs exec",
    "qemu": "QEMU's device vfio-ap, which libvirt uses, inside apfs exec",
}
"""What can be asked for, with what it means."""
IF_INSTALLED = frozenset(("qemu",))
"""What is tried without being asked for only where there is the program."""

_COMMAND_SECONDS = 60
_EVENT_SECONDS = 10
# Processor time that the imports of this command take on a machine of 2020.
_START_SECONDS = 0.2
_NOBODY = 65534
_UUID = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
"""The device of the scenario migration-source."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The result for one capability."""

    name: str
    works: bool
    said: str = ""
    """What the attempt said when it failed, in the words of the program that did."""
    problems: tuple[Problem, ...] = ()
    note: str = ""


@dataclass(slots=True)
class Report:
    """What was tried."""

    facts: Facts
    trials: list[Trial] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for works."""
        return all(trial.works for trial in self.trials)

    @property
    def flags(self) -> list[str]:
        """What to add to `docker run` or `podman run`, for all trials together."""
        return list(dict.fromkeys(flag for one in self.trials for problem in one.problems for flag in problem.flags))

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values; docs/containers.md documents the keys."""
        facts = self.facts
        return {
            "ok": self.ok,
            "situation": {
                "place": facts.place,
                "engine": facts.engine,
                "virtual": facts.virtual,
                "uid": facts.uid,
                "user_namespace": facts.own_users,
                "kernel": ".".join(map(str, facts.kernel)),
                "summary": situation(facts),
            },
            "emulated_kernel": NEWEST,
            "capabilities": {
                one.name: {
                    "works": one.works,
                    "said": one.said,
                    "problems": [asdict(problem) for problem in one.problems],
                    "note": one.note,
                }
                for one in self.trials
            },
            "flags": self.flags,
        }


def situation(facts: Facts) -> str:
    """Return one sentence about where this is."""
    who = "root" if facts.root else f"user {facts.uid}"
    kernel = f"Linux {'.'.join(map(str, facts.kernel))}"
    if facts.place == "machine":
        kind = "a virtual machine" if facts.virtual else "a machine"
        inside = ", in a user namespace" if facts.own_users else ""
        return f"{kind}{inside}, as {who}; {kernel}"
    kind = "a Kubernetes pod" if facts.place == "pod" else "a container"
    rights = "rootless" if facts.own_users else "rootful"
    engine = f" of {facts.engine}" if facts.engine and facts.place == "container" else ""
    return f"{kind}{engine}, {rights}, as {who}; {kernel}"


def patience(least: float, processor_seconds: float) -> float:
    """Return for how many seconds something is waited for: this keeps what hangs from hanging the examination.

    It is `least`, or as many times as long as this machine is slower than usual: processors may be emulated. How slow
    it is shows in the processor time of this process, which goes into imports, as in what it waits for.
    """
    return least * max(1.0, processor_seconds / _START_SECONDS)


def _command_seconds() -> float:
    return patience(_COMMAND_SECONDS, time.process_time())


def examine(names: Collection[str] = ()) -> Report:
    """Try the capabilities with these names, or all, on hosts of their own. Nothing stays behind."""
    report = Report(environment.look())
    wanted = [name for name in CAPABILITIES if name in names] if names else _usual()
    tried: dict[str, Trial] = {}
    if "python" in wanted:
        tried["python"] = _python()
    if "mount" in wanted:
        tried["mount"] = _mount(report.facts, allow_other=False)
    if "allow-other" in wanted:
        tried["allow-other"] = _mount(report.facts, allow_other=True)
    if {"exec", "uevents", "vfio"} & set(wanted):
        tried |= _exec(report.facts)
    if "qemu" in wanted:
        tried["qemu"] = _qemu()
    report.trials = [tried[name] for name in wanted]
    return report


def _usual() -> list[str]:
    """Return the names of what is tried if nothing is asked for."""
    try:
        emulator.find()
    except emulator.EmulatorError:
        return [name for name in CAPABILITIES if name not in IF_INSTALLED]
    return list(CAPABILITIES)


def _python() -> Trial:
    # A failure here must not end the doctor.
    from apfs.host import Host
    from apfs.scenario.reader import load
    from apfs.testing.files import Shell

    try:
        text = Shell(Host(load("default"))).cat("/sys/bus/ap/bindings")
    except Exception:  # noqa: BLE001 -- whatever it is, it is what was asked for
        return Trial("python", works=False, said=traceback.format_exc().splitlines()[-1])
    return Trial("python", works=bool(text))


def _mount(facts: Facts, *, allow_other: bool) -> Trial:
    name = "allow-other" if allow_other else "mount"
    try:
        with MountedHost("default", allow_other=allow_other) as host:
            host.read("/sys/bus/ap/bindings")
            if allow_other and facts.root:
                # From within, because the way to the mount point may be closed to others.
                command, other = ["cat", "sys/bus/ap/bindings"], _NOBODY
                subprocess.run(command, cwd=host.path, user=other, check=True, capture_output=True, text=True)
    except (table.MountsError, OSError) as error:
        problems = environment.mount_problems(facts)
        if allow_other:
            problems += environment.allow_other_problems(facts)
        return Trial(name, works=False, said="" if problems else str(error), problems=tuple(problems))
    except subprocess.CalledProcessError as error:
        return Trial(name, works=False, said=f"another user cannot read the mount: {error.stderr.strip()}")
    return Trial(name, works=True)


def _exec(facts: Facts) -> dict[str, Trial]:
    """Run one command in a sandbox and have it tell what it could do there."""
    answer, said = _run_probe()
    if answer:
        # apfs exec has warned of what it could not do itself.
        found = {"exec": Trial("exec", works=True)}
        remedies = {"uevents": environment.uevent_problems(facts), "vfio": environment.vfio_problems(facts)}
        for name, problems in remedies.items():
            why = answer[name]
            found[name] = (
                Trial(name, works=False, said=said or why, problems=tuple(problems)) if why else Trial(name, works=True)
            )
        return found
    problems = []
    mount = _mount(facts, allow_other=facts.root)
    if not mount.works:
        problems += mount.problems
    refusal = _refusal_of_bwrap()
    if refusal:
        problems += environment.sandbox_problems(facts) or environment.filter_problems(facts)
    note = ""
    if mount.works and _run("--net", "host", "--", "true").returncode == 0:
        note = "`apfs exec --net host` works: without uevents, on the machine's network"
    known = tuple(dict.fromkeys(problems))
    first = Trial("exec", works=False, said=refusal or ("" if known else said), problems=known, note=note)
    rest = {name: Trial(name, works=False, said="needs apfs exec") for name in ("uevents", "vfio")}
    return {"exec": first, **rest}


def _refusal_of_bwrap() -> str:
    """Return what bwrap says about the namespaces that `apfs exec` wants; empty if it makes them."""
    command = ["bwrap", "--dev-bind", "/", "/", *compose.namespaces(compose.Sandbox()), "--", "true"]
    try:
        result = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=_command_seconds(),
            preexec_fn=linux.drop_ambient_capabilities,
        )
    except FileNotFoundError:
        return "bwrap cannot be run"
    return (result.stderr.strip() or f"bwrap ended with status {result.returncode}") if result.returncode else ""


def _qemu() -> Trial:
    """Start a machine that has a vfio-ap device, without running it, and ask QEMU whether it is there."""
    device = f"vfio-ap,sysfsdev=/sys/bus/mdev/devices/{_UUID}"
    machine = ("-machine", "s390-ccw-virtio", "-m", "32", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio")
    script = f'echo 0 > /dev/vfio-ap/{_UUID}/guest && exec "$@"'
    command = ("sh", "-c", script, "sh", *server.PYTHON, "-m", "apfs.vmm", *machine, "-device", device)
    result = _run("--scenario", "migration-source", "--", *command, stdin="info qtree\nquit\n")
    if result.returncode == 0 and "dev: vfio-ap" in result.stdout:
        return Trial("qemu", works=True)
    said = result.stderr.strip().rpartition("\n")[2].removeprefix("apfs: ")
    return Trial("qemu", works=False, said=said or f"QEMU ended with status {result.returncode}")


def _run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*server.PYTHON, "-m", "apfs", "exec", *arguments]
    seconds = _command_seconds()
    try:
        return subprocess.run(command, check=False, input=stdin, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:.0f} seconds")


def _run_probe() -> tuple[dict[str, str], str]:
    """Run `probe` inside `apfs exec`; return its answer, empty if it did not come to one, and the last warning."""
    result = _run("--", *server.PYTHON, "-c", "from apfs.cli.capabilities import probe; probe()")
    said = result.stderr.strip().rpartition("\n")[2].removeprefix("apfs: ")
    answer: dict[str, str] = json.loads(result.stdout) if result.returncode == 0 else {}
    return answer, said


def probe() -> None:
    """Inside `apfs exec`: print, as JSON, why uevents and VFIO ioctls do not work; an empty reason if they do."""
    mask = Path("/sys/bus/ap/apmask")
    mask.read_text()
    answer = {}
    seconds = patience(_EVENT_SECONDS, time.process_time())
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT) as listener:
        listener.bind((0, 1))
        mask.write_text("-5")
        heard, _, _ = select.select([listener], [], [], seconds)
        answer["uevents"] = "" if heard else f"no uevent arrived within {seconds:.0f} seconds"
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    try:
        fcntl.ioctl(container, uapi.Cmd.VFIO_GET_API_VERSION)
        answer["vfio"] = ""
    except OSError as error:
        answer["vfio"] = f"VFIO_GET_API_VERSION: {error.strerror}"
    sys.stdout.write(json.dumps(answer))
