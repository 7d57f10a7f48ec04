"""Migration between machines: `apfs migrate --send` and `--receive`, over whatever carries bytes, until it breaks."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from apfs.mounts import remote
from apfs.mounts.frames import Channel, encode
from apfs.mounts.migration import Check, NotPossibleError, Outcome
from apfs.mounts.remote import Received
from tests.conftest import TIMEOUT, UUID, apfs, sh
from tests.mounted.test_migration import client, of_revision
from tests.mounted.test_monitor import on_terminal
from tests.tools.conftest import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Mounter = Callable[..., Path]

APFS = [sys.executable, "-m", "apfs"]


def status(host: Path) -> dict[str, Any]:
    """Return the state of a host, and of the guest's migration."""
    text: dict[str, Any] = json.loads((host / "ctl/status").read_text())
    return text


def guest(host: Path) -> str | None:
    """Return the migration state of the guest, None if there is none."""
    has = (client(host) / "guest").read_text() == "1\n"
    return (client(host) / "migration_state").read_text().strip() if has else None


# -- both ends in this process, and a wire between them that can be cut ------------------------------------------------


@dataclass
class Wire:
    """A pipe that carries some bytes and then breaks; None: all."""

    limit: int | None = None

    def __post_init__(self) -> None:
        self.carried = b""
        self.out, self._into = os.pipe()
        self._from, self.into = os.pipe()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        with contextlib.suppress(OSError):
            while self.limit is None or len(self.carried) < self.limit:
                left = 1 << 16 if self.limit is None else self.limit - len(self.carried)
                piece = os.read(self._from, left)
                if not piece:
                    break
                self.carried += piece
                os.write(self._into, piece)
        os.close(self._from)
        os.close(self._into)

    def join(self) -> None:
        """Wait until it carries nothing any more."""
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()


def run_end(end: Callable[[Channel], object], out: int, into: int, results: list[object]) -> None:
    """Run one end, as a process that has ended afterwards."""
    try:
        results.append(end(Channel(out, into)))
    except NotPossibleError as error:
        results.append(error)
    finally:
        os.close(out)
        os.close(into)


def between(
    source: Path, target: Path, there: int | None = None, back: int | None = None, *, only_check: bool = False
) -> tuple[Any, Any, bytes, bytes]:
    """Return what both ends say, and what went there and back, with wires that break after so many bytes."""
    to, fro = Wire(there), Wire(back)
    said: tuple[list[object], list[object]] = [], []
    ends = [
        (lambda channel: remote.send(source, UUID, channel, only_check=only_check), fro.out, to.into, said[0]),
        (lambda channel: remote.receive(target, UUID, channel, only_check=only_check), to.out, fro.into, said[1]),
    ]
    threads = [threading.Thread(target=run_end, args=end) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    to.join()
    fro.join()
    return said[0][0], said[1][0], to.carried, fro.carried


def cuts(carried: bytes) -> Iterator[tuple[str, int]]:
    """Yield each frame's name with the places before it, in it, and before its last byte."""
    start = 0
    for line in carried.splitlines(keepends=True):
        name = json.loads(line)["frame"]
        yield from ((name, start + place) for place in (0, len(line) // 2, len(line) - 1))
        start += len(line)


@pytest.mark.parametrize(("driver", "waits"), [("v2", True), ("v2", False), ("v4", False), ("next", False)])
def test_a_connection_that_breaks_at_any_place(mount: Mounter, tmp_path: Path, driver: str, waits: bool) -> None:  # noqa: FBT001
    """Both hosts are as after a failed migration. When the source has said `run`, the guest is in one place only."""
    source = of_revision(mount, tmp_path, driver, "migration-source")
    target = of_revision(mount, tmp_path, driver, "migration-target")
    (client(target) / "guest").write_text("1" if waits else "0")
    before = status(source), status(target)
    sent, received, there, back = between(source, target)
    assert (sent.ok, received.ok, sent.stream) == (True, True, received.stream)
    assert (guest(source), guest(target)) == (None, "RUNNING")

    def again() -> None:
        (client(target) / "guest").write_text("1" if waits else "0")
        (client(source) / "guest").write_text("1")
        (client(source) / "migration_state").write_text("RUNNING")
        assert (status(source), status(target)) == before

    for name, place in cuts(there):
        again()
        sent, received, *_ = between(source, target, there=place)
        assert not received.ok if isinstance(received, Received) else "connection" in str(received)
        if name == "closed":
            assert sent.ok
            assert "may still have it" in received.error
            assert (guest(source), guest(target)) == (None, "RUNNING")
        elif name == "run" and guest(source) == "STOP_COPY":  # not if it knows that the frame has not arrived
            assert "is stopped on the source" in sent.error
            assert status(target) == before[1]
        else:
            assert not sent.ok if isinstance(sent, Outcome) else "connection" in str(sent)
            assert (status(source), status(target)) == before
    answers = [json.loads(line)["frame"] for line in back.splitlines()]
    assert answers == ["hello", "done", "done", "done"]
    last = len(back) - len(encode("done"))
    for _, place in cuts(back):
        again()
        sent, received, *_ = between(source, target, back=place)
        if place >= last:
            assert "is stopped on the source" in sent.error
            assert (guest(source), guest(target)) == ("STOP_COPY", "RUNNING")
        else:
            assert not sent.ok if isinstance(sent, Outcome) else "connection" in str(sent)
            assert (status(source), status(target)) == before


def test_an_interrupt_just_after_run_is_on_its_way(mount: Mounter) -> None:
    """The source cannot know whether the target runs the guest, and so does not resume it."""
    source, target = mount("migration-source"), mount("migration-target")

    def interrupt(frame: FrameType, event: str, called: object) -> None:
        if event == "c_return" and called is os.write and frame.f_locals.get("name") == "run":
            sys.setprofile(None)
            raise KeyboardInterrupt

    to, fro = Wire(), Wire()
    received: list[object] = []
    other = threading.Thread(
        target=run_end,
        args=(lambda channel: remote.receive(target, UUID, channel, only_check=False), to.out, fro.into, received),
    )
    other.start()
    sys.setprofile(interrupt)
    sent: list[object] = []
    try:
        run_end(lambda channel: remote.send(source, UUID, channel, only_check=False), fro.out, to.into, sent)
    finally:
        sys.setprofile(None)
        other.join(TIMEOUT)
    (outcome,) = sent
    assert isinstance(outcome, Outcome)
    assert outcome.error is not None
    assert outcome.error.startswith("interrupted; the guest may run on the target, and is stopped on the source")
    assert (guest(source), guest(target)) == ("STOP_COPY", "RUNNING")


@pytest.mark.parametrize("name", ["errorcode", "__name__", "", "ELSE"])
def test_a_target_that_fails_for_no_known_reason(mount: Mounter, name: str) -> None:
    source = mount("migration-source")
    hello = {"role": "target", "check": False, "uuid": UUID, "host": "another", "driver": "v2"}
    hello |= {"migratable": True, "secure_execution": False, "protocol": 1, "apfs": "1"}
    said = encode("hello", **hello) + encode("failed", errno=name, path="/there")
    other = ["sh", "-c", 'printf %s "$1"; cat > /dev/null', "sh", said.decode()]
    result = apfs("migrate", "--send", str(source), UUID, "--", *other, status=1)
    assert "not migrated: Input/output error (/there); the guest keeps running on the source" in result.stdout
    assert guest(source) == "RUNNING"


@pytest.mark.parametrize("scenario", ["migration-target", "target-older-type"])
def test_what_it_says_is_what_a_migration_on_one_machine_says(mount: Mounter, scenario: str) -> None:
    source, target = mount("migration-source"), mount(scenario)
    here, there = str(source), str(target)
    number = 0 if scenario == "migration-target" else 1
    for options in (["--check"], ["--check", "--json"], [], ["--json"]):
        if number == 0 and not options:
            continue
        alone = apfs("migrate", *options, here, there, UUID, status=number)
        if number == 0 and "--check" not in options:
            (client(source) / "guest").write_text("1")
        ends = ["--send", here, UUID, "--", *APFS, "migrate", *options, "--receive", there, UUID]
        apart = apfs("migrate", *options, *ends, status=number)
        assert apart.stdout == alone.stdout


@pytest.mark.parametrize(("driver", "other"), [("none", "v2"), ("v2", "none"), ("next", "v4")])
def test_between_revisions(mount: Mounter, tmp_path: Path, driver: str, other: str) -> None:
    source = of_revision(mount, tmp_path, driver, "migration-source")
    target = of_revision(mount, tmp_path, other, "migration-target")
    here, there = str(source), str(target)
    before = status(source), status(target)
    for check in (True, False):
        sent, received, *_ = between(source, target, only_check=check)
        options = ["--check"] if check else []
        assert sent.as_dict() == json.loads(apfs("migrate", "--json", *options, here, there, UUID, status=1).stdout)
        assert received is None if check else not received.ok
        assert (status(source), status(target)) == before


def test_a_check_with_many_findings(mount: Mounter) -> None:
    """One per queue, in more frames than one."""
    source, target = mount("largest"), mount("largest")
    for host in (source, target):
        (host / "sys/bus/ap/apmask").write_text("0x0")
        matrix = host / "sys/devices/vfio_ap/matrix"
        (matrix / "mdev_supported_types/vfio_ap-passthrough/create").write_text(UUID)
        domains = "0x" + "f" * 64 if host == source else "0x" + "f" * 32
        (matrix / UUID / "ap_config").write_text(f"0x{'f' * 5},{domains},0x0")
    sent, received, *_ = between(source, target, only_check=True)
    alone = apfs("migrate", "--check", "--json", str(source), str(target), UUID, status=1)
    assert isinstance(sent, Check)
    assert sent.as_dict() == json.loads(alone.stdout)
    assert received is None


# -- processes, and what connects them -------------------------------------------------------------------------------


def test_over_a_network(mount: Mounter) -> None:
    need("socat")
    source, target = mount("migration-source"), mount("migration-target")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shlex.join([*APFS, "migrate", "--receive", str(target), UUID])
    with subprocess.Popen(
        ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr", f"EXEC:{command}"], stderr=subprocess.PIPE
    ) as listener:
        carrier = ["socat", "STDIO", f"TCP:127.0.0.1:{port},retry=600,interval=0.1"]
        sent = apfs("migrate", "--send", str(source), UUID, "--", *carrier)
        said = listener.communicate(timeout=TIMEOUT)[1].decode()
    assert sent.stdout == f"{UUID}: migrated, 72 bytes\n"
    assert f"{UUID}: received, 72 bytes\n" in said
    assert (guest(source), guest(target)) == (None, "RUNNING")


def test_over_a_pair_of_pipes(mount: Mounter, tmp_path: Path) -> None:
    """What happened is on standard error: standard output is the other end's."""
    source, target = mount("migration-source"), mount("migration-target")
    script = """
        mkfifo "$1"
        "${@:4}" migrate --receive "$3" $UUID < "$1" | "${@:4}" migrate --send "$2" $UUID > "$1"
        echo "${PIPESTATUS[@]}"
    """
    said = sh(f"UUID={UUID}; {script}", str(tmp_path / "back"), str(source), str(target), *APFS)
    assert said.stdout == "0 0\n"
    assert sorted(said.stderr.splitlines()) == [f"{UUID}: migrated, 72 bytes", f"{UUID}: received, 72 bytes"]


def test_the_target_can_fetch_a_guest(mount: Mounter) -> None:
    source, target = mount("migration-source"), mount("migration-target")
    sender = [*APFS, "migrate", "--send", str(source), UUID]
    fetched = apfs("migrate", "--json", "--receive", str(target), UUID.upper(), "--", *sender)
    assert json.loads(fetched.stdout) == {"uuid": UUID, "ok": True, "stream": 72, "error": None, "log": []}
    assert fetched.stderr == f"{UUID}: migrated, 72 bytes\n"


def test_a_target_that_takes_any_guest(mount: Mounter) -> None:
    source, target = mount("migration-source"), mount("migration-target")
    other = [*APFS, "migrate", "--receive"]
    assert apfs("migrate", "--send", str(source), UUID, "--", *other, str(target)).stdout.endswith(
        "migrated, 72 bytes\n"
    )
    unlike = apfs("migrate", "--send", str(target), UUID, "--", *other, str(mount("empty")), status=2).stderr
    assert f"the target says: {target.parent}/host2 has no mediated device {UUID}" in unlike


def test_ends_that_do_not_fit(mount: Mounter) -> None:
    source, target = mount("migration-source"), mount("migration-target")
    here, there = str(source), str(target)
    before = status(source), status(target)

    def refused(*arguments: str) -> str:
        return apfs("migrate", *arguments, status=2).stderr

    send, receive = ["--send", here, UUID], ["--receive", there, UUID]
    other = [*APFS, "migrate"]
    for arguments, why in (
        ((*send, "--", "sh", "-c", "echo Welcome; exit 1"), "is not `apfs migrate`, it says: Welcome\n"),
        ((*send, "--", "true"), "apfs: the connection ended\n"),
        ((*send, "--", "/no/such/command"), "apfs: /no/such/command: No such file or directory\n"),
        ((*send, "--", *other, *send), "both ends are the source: one has to --send, the other to --receive\n"),
        ((*send, "--", *other, "--receive", here, UUID), "source and target are the same host\n"),
        ((*send, "--", *other, "--receive", there, UUID[::-1]), f"the target says: {there} has no mediated device"),
        ((*receive, "--", *other, "--send", there + "/x", UUID), f"the source says: {there}/x does not exist"),
        ((*send, "--", *other, "--check", *receive), "only the target has --check: add it to the source\n"),
        ((*send, *receive), "--send and --receive exclude each other\n"),
        (("--send", here), "UUID is missing\n"),
        ((here, there), "expected SOURCE, TARGET and UUID\n"),
    ):
        assert why in refused(*arguments)
    assert (status(source), status(target)) == before
    (client(target) / "guest").write_text("0")
    said = refused(*receive, "--", *other, "--send", there, UUID)
    assert f"the source says: {there} has no guest running" in said


def test_forgotten_and_misplaced_arguments(mount: Mounter) -> None:
    """Nothing is started, and each message says what to write instead."""
    here, there = str(mount("migration-source")), str(mount("migration-target"))
    send, receive = ("--send", here), ("--receive", there)
    ran = Path(here).parent / "ran"
    command = ("sh", "-c", f"echo >> {shlex.quote(str(ran))}")
    for arguments, why in (
        ((*send, "--", *command), "UUID is missing before --: expected --send SOURCE UUID -- COMMAND\n"),
        ((*send, *command[:1], here), "'sh' is not a UUID: expected --send SOURCE UUID [-- COMMAND]\n"),
        ((*send, there, UUID), f"{there!r} is not a UUID: expected --send SOURCE UUID [-- COMMAND]\n"),
        ((*receive, *command[:1], here), "'sh' is not a UUID: expected --receive TARGET [UUID] [-- COMMAND]\n"),
        ((*send, there, UUID, "--", *command), "expected only UUID before --, as in --send SOURCE UUID -- COMMAND\n"),
        (
            (*send, UUID, there),
            f"apfs: {there}: Permission denied: a COMMAND that runs the other end comes after UUID\n",
        ),
        ((*receive, "ssh", "a", "apfs", "migrate", *send, UUID), "each other: put -- before the COMMAND\n"),
        ((*send, UUID, "ssh", "-p", "22", "b"), "put -- before the COMMAND if this is one of its options\n"),
        (("--send", "", UUID), "SOURCE is empty\n"),
        (("--receive", ""), "TARGET is empty\n"),
        ((*send, "", "--", *command), "UUID is empty\n"),
        ((*receive, "", "--", *command), "UUID is empty\n"),
        (("", there, UUID), "SOURCE is empty\n"),
        ((here, "", UUID), "TARGET is empty\n"),
        ((here, there, ""), "UUID is empty\n"),
        ((UUID, here, there), "expected SOURCE, TARGET and UUID, in this order\n"),
        ((here, UUID, there), "expected SOURCE, TARGET and UUID, in this order\n"),
        ((here, UUID, "--", *command), "a COMMAND needs --send or --receive\n"),
        (("--check", here, there, UUID, there), "expected SOURCE, TARGET and UUID\n"),
    ):
        said = apfs("migrate", *arguments, status=2)
        assert said.stderr.endswith(why), arguments
        assert said.stdout == ""
    assert not ran.exists()


def test_a_target_that_starts_its_source_needs_no_uuid(mount: Mounter) -> None:
    source, target = mount("migration-source"), mount("migration-target")
    sender = (*APFS, "migrate", "--send", str(source), UUID)
    assert apfs("migrate", "--receive", str(target), "--", *sender).stdout == f"{UUID}: received, 72 bytes\n"


@pytest.mark.parametrize("name", ["HUP", "TERM"])
def test_signals_that_are_ignored_end_nothing(mount: Mounter, name: str) -> None:
    """As nohup(1) has it; here the command at the other end sends one, and ends."""
    script = "trap '' $1; shift; exec \"$@\""
    end = ["migrate", "--send", str(mount("migration-source")), UUID, "--", "sh", "-c", f"kill -{name} $PPID"]
    result = sh(script, name, sys.executable, "-m", "apfs", *end, status=2)
    assert result.stderr == "apfs: the connection ended\n"


def test_it_does_not_talk_to_a_terminal(mount: Mounter) -> None:
    need("script")
    command = shlex.join([*APFS, "migrate", "--receive", str(mount("migration-target")), UUID])
    said = sh(f"script --quiet --return --command {shlex.quote(command)} /dev/null", status=2).stdout
    assert "connect standard input and output to the other end" in said


def test_two_ends_on_one_terminal_print_their_results_and_no_progress(mount: Mounter) -> None:
    """An end that drew there would destroy what the other one, or ssh, writes."""
    source, target = str(mount("migration-source")), str(mount("migration-target"))
    shown = on_terminal("migrate", "--send", source, UUID, "--", *APFS, "migrate", "--receive", target)
    assert shown == f"{UUID}: received, 72 bytes\n{UUID}: migrated, 72 bytes\n"


@contextlib.contextmanager
def receiving(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have a target's end that has been told to prepare, by hand."""
    command = [*APFS, "migrate", "--receive", str(target), UUID]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        theirs = json.loads(process.stdout.readline())
        process.stdin.write(
            encode(**{**theirs, "name": "hello", "role": "source", "host": "another", "frame": "hello"})
        )
        process.stdin.write(encode("prepare"))
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"frame": "done"}
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_target_that_is_interrupted_undoes_it(mount: Mounter, number: signal.Signals) -> None:
    target = mount("migration-target")
    (client(target) / "guest").write_text("0")
    before = status(target)
    with receiving(target) as process:
        assert guest(target) == "RESUMING"
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT)
    assert process.returncode not in {0, None}
    assert status(target) == before


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (encode("run"), "a frame run where take or undo should be"),
        (encode("take", stream="?"), "a stream that is not base64"),
        (b"garbage\n", "is not `apfs migrate`, it says: garbage"),
        (encode("undo"), "the source could not continue, and has undone the migration"),
        (encode("take", stream="AAA=") + encode("undo"), "the source could not continue, and has undone the migration"),
        (encode("take", stream=base64.b64encode(b"\1" * 500).decode()), "Input/output error ("),
    ],
)
def test_a_target_that_hears_nonsense_undoes_it(mount: Mounter, frame: bytes, why: str) -> None:
    target = mount("migration-target")
    before = status(target)
    with receiving(target) as process:
        _, said = process.communicate(frame, timeout=TIMEOUT)
    assert process.returncode == 1
    assert why in said.decode()
    assert status(target) == before
