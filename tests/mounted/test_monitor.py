"""`apfs status` and `apfs journal` on real mounts: terminals, pipes, signals, and mounts that go away."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from typing import IO, TYPE_CHECKING

import pytest

from apfs.journal.log import CAPACITY
from tests.conftest import TIMEOUT, UUID, apfs, create_mdev, let_in, server_of, sh
from tests.mounted.test_lifecycle import wait_for_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Mounter = Callable[..., Path]

APFS = [sys.executable, "-m", "apfs"]
REFUSED = "domain 999 is not in 0..255"


@pytest.fixture
def host(mount: Mounter) -> Path:
    return mount("default", "--clock", "manual")


def refuse(host: Path) -> None:
    """Have a write refused, which makes one record."""
    sh('! echo 999 > "$1"', str(host / "sys/bus/ap/ap_domain"))


def verb(host: Path, text: str = "help") -> None:
    (host / "ctl/console").write_text(text)


def on_terminal(*arguments: str, **variables: str) -> str:
    """Run a command on a terminal and return what it showed."""
    ours, theirs = pty.openpty()
    names = ("NO_COLOR", "FORCE_COLOR", "LINES")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    env = {**inherited, "TERM": "xterm-256color", "COLUMNS": "100", **variables}
    with subprocess.Popen([*APFS, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        shown = b""
        while piece := _read_terminal(ours):
            shown += piece
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def _read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # what a terminal gives when nobody has it open any more
        return b""


class Follower:
    """An `apfs journal --follow` whose output is read line by line, waiting for each."""

    def __init__(self, *arguments: str) -> None:
        command = [*APFS, "journal", "--follow", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        self.stdout: IO[bytes] = self.process.stdout
        self._text = b""

    def line(self) -> str:
        while b"\n" not in self._text:
            ready, _, _ = select.select([self.stdout], [], [], TIMEOUT)
            assert ready, "nothing was printed"
            piece = os.read(self.stdout.fileno(), 65536)
            assert piece, "it has ended"
            self._text += piece
        line, _, self._text = self._text.partition(b"\n")
        return f"{line.decode()}\n"

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; return exit status and what was printed since the last line."""
        rest, said = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, (self._text + rest).decode(), said.decode()


@pytest.fixture
def follow() -> Iterator[Callable[..., Follower]]:
    followers: list[Follower] = []

    def start(*arguments: str) -> Follower:
        followers.append(Follower(*arguments))
        return followers[-1]

    yield start
    for follower in followers:
        if follower.process.poll() is None:
            follower.process.kill()
        follower.process.communicate()


class Watcher:
    """An `apfs status --watch` on a terminal, whose screen is read until a text is there."""

    def __init__(self, host: Path, lines: int = 60) -> None:
        self._ours, theirs = pty.openpty()
        env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        env |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": f"{lines}"}
        command = [*APFS, "status", "--watch", str(host)]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)

    def until(self, text: str) -> str:
        """Return what is shown up to a text, which must come."""
        shown = b""
        while text.encode() not in shown:
            ready, _, _ = select.select([self._ours], [], [], TIMEOUT)
            assert ready, shown.decode()
            piece = _read_terminal(self._ours)
            assert piece, shown.decode()
            shown += piece
        return shown.decode()

    def end(self) -> tuple[int, str]:
        """Wait for the end; return exit status and what was shown since."""
        shown = b""
        while piece := _read_terminal(self._ours):
            shown += piece
        os.close(self._ours)
        return self.process.wait(TIMEOUT), shown.decode().replace("\r\n", "\n")


# -- status -------------------------------------------------------------------------------------------


def test_status(host: Path) -> None:
    (host / "sys/bus/ap/apmask").write_text("-5")
    create_mdev(host)
    (host / f"dev/vfio-ap/{UUID}/guest").write_text("1")
    text = apfs("status", str(host)).stdout
    assert re.search(r"^bindings +12 of 12 queues, complete$", text, re.MULTILINE)
    assert re.search(r"^05 +vfio_ap +unassigned +0004 0047 00ab 00ff$", text, re.MULTILINE)
    assert re.search(rf"^{UUID} +0 +vfio0 +guest +RUNNING$", text, re.MULTILINE)
    assert re.search(r"console verb tick", text)


SCREEN, CURSOR = "\x1b[?1049l", "\x1b[?25h"
"""What gives a terminal its former screen, and its cursor, back."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_shows_what_changes_until_a_signal_ends_it(host: Path, number: signal.Signals) -> None:
    watcher = Watcher(host)
    assert "apmask           00-ff" in re.sub(r"\x1b\[[0-9;]*m", "", watcher.until("modules "))
    (host / "sys/bus/ap/apmask").write_text("-5")
    watcher.until("00-04 06-ff")
    watcher.process.send_signal(number)
    status, shown = watcher.end()
    assert status == -number
    assert SCREEN in shown
    assert CURSOR in shown
    assert "Traceback" not in shown


def test_watch_tells_what_does_not_fit(host: Path) -> None:
    watcher = Watcher(host, lines=12)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", watcher.until("make the terminal larger"))
    text = apfs("status", str(host)).stdout
    assert f"... {text.count(chr(10)) - 11} more lines: make the terminal larger" in shown
    assert "kernel " in shown
    assert "modules " not in shown
    watcher.process.send_signal(signal.SIGTERM)
    watcher.end()


def test_watch_ends_with_the_mount(host: Path) -> None:
    watcher = Watcher(host)
    watcher.until("modules ")
    apfs("umount", "--lazy", str(host))  # it may be reading right now
    status, shown = watcher.end()
    assert status == 1
    assert shown.endswith(f"{SCREEN}apfs: {host} was unmounted\n")


def test_watch_is_for_terminals(host: Path) -> None:
    assert "--watch needs a terminal" in apfs("status", "--watch", str(host), status=2).stderr
    assert "exclude each other" in apfs("status", "--watch", "--json", str(host), status=2).stderr
    assert "--watch needs a terminal" in on_terminal("status", "--watch", str(host), TERM="dumb")


def test_links_to_the_mount(host: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(host)
    assert apfs("status", str(link)).stdout == apfs("status", f"{host}/").stdout


def test_status_as_json_is_the_file(host: Path) -> None:
    result = apfs("status", "--json", str(host))
    assert result.stdout == (host / "ctl/status").read_text()
    assert json.loads(result.stdout)["clock"] == "manual"


def test_real_clock_is_known(mount: Mounter) -> None:
    host = mount()
    assert json.loads((host / "ctl/status").read_text())["clock"] == "real"
    assert "console verb tick" not in apfs("status", str(host)).stdout


@pytest.mark.parametrize(("variables", "colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_on_a_terminal(host: Path, variables: dict[str, str], colours: bool) -> None:  # noqa: FBT001
    refuse(host)
    for command in ("status", "journal"):
        shown = on_terminal(command, str(host), **variables)
        assert ("\x1b[" in shown) is colours
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert "\x1b" not in plain
        assert [line.rstrip() for line in plain.splitlines()] == apfs(command, str(host)).stdout.splitlines()


def test_json_has_no_colours_on_a_terminal(host: Path) -> None:
    refuse(host)
    assert on_terminal("journal", "--json", str(host)) == recording(host)
    assert json.loads(on_terminal("status", "--json", str(host)))["scenario"] == "default"


def test_wide_tables_are_folded_on_a_terminal_only(mount: Mounter, tmp_path: Path) -> None:
    scenario = tmp_path / "wide.toml"
    domains = list(range(0, 256, 2))
    scenario.write_text(f'[qci]\ndomains = {domains}\n[[card]]\nadapter = 5\ntype = "CEX8C"\n')
    host = mount(str(scenario))
    assert " ".join(f"{domain:04x}" for domain in domains) + "\n" in apfs("status", str(host)).stdout
    assert max(map(len, on_terminal("status", str(host), COLUMNS="80", NO_COLOR="1").splitlines())) <= 80


def test_status_of_the_largest_host(mount: Mounter) -> None:
    text = apfs("status", str(mount("largest"))).stdout
    assert re.search(r"^00-ff +cex4queue +online +0000-00ff$", text, re.MULTILINE)
    assert len(text.splitlines()) < 24


@pytest.mark.parametrize("command", ["status", "status --json", "journal", "journal --json", "record --root"])
@pytest.mark.parametrize(
    ("output", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_output_that_is_lost(host: Path, command: str, output: str, reason: str) -> None:
    verb(host)
    result = sh(f'"$1" -m apfs {command} "$2" {output}', sys.executable, str(host), status=1)
    assert result.stderr == f"apfs: standard output: {reason}\n"


def test_closed_pipe(host: Path) -> None:
    for _ in range(20):
        verb(host)
    script = """
        for command in "status" "journal" "journal --follow" "status --json"; do
            "$1" -m apfs $command "$2" | head -n 1 | wc -l
            test "${PIPESTATUS[0]}" = 0 -o "${PIPESTATUS[0]}" = 141 || exit 1
        done
    """
    result = sh(script, sys.executable, str(host))
    assert result.stdout == "1\n" * 4
    assert result.stderr == ""


# -- what is no host ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "journal"])
def test_what_is_no_mount(command: str, tmp_path: Path, host: Path) -> None:
    nowhere = tmp_path / "nowhere"
    said = f"apfs: {nowhere} does not exist: `mkdir -p {nowhere} && apfs mount {nowhere}` first\n"
    assert apfs(command, str(nowhere), status=2).stderr == said
    said = f"apfs: {tmp_path} is not an apfs mount: `apfs mount {tmp_path}` first\n"
    assert apfs(command, str(tmp_path), status=2).stderr == said
    for place in (host / "sys", host / "ctl/status"):
        said = f"apfs: {place} is not an apfs mount, but in one: use {host}\n"
        assert apfs(command, str(place), status=2).stderr == said
    file = tmp_path / "bug.json"
    file.write_text("{}")
    advice = ": `apfs report` and `apfs replay` read journals in files" if command == "journal" else ""
    assert apfs(command, str(file), status=2).stderr == f"apfs: {file} is not an apfs mount, but a file{advice}\n"
    assert "Invalid value for '[MOUNT]': it is empty\n" in apfs(command, "", status=2).stderr
    assert "only inside `apfs exec`" in apfs(command, status=2).stderr


def test_as_many_lines_as_one_likes(host: Path) -> None:
    (host / "ctl/console").write_text("scan")
    assert apfs("journal", "-n", "9" * 30, str(host)).stdout == apfs("journal", str(host)).stdout


@pytest.mark.parametrize("command", ["status", "journal", "report"])
def test_files_of_ctl_that_may_not_be_read(host: Path, tmp_path: Path, command: str) -> None:
    user: tuple[str, ...] = ()
    if os.geteuid() == 0:
        let_in(tmp_path)
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for name in ("status", "journal", "header"):
        (host / "ctl" / name).chmod(0)
    result = subprocess.run([*user, *APFS, command, host], check=False, capture_output=True, text=True, timeout=TIMEOUT)
    advice = f"`chmod a+r {host}/ctl/*` gives it back"
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"apfs: {host}: no permission to read a file of its ctl: {advice}\n"


def test_advice_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    place = str(tmp_path / "a b; $(c)")

    def follow(refused: subprocess.CompletedProcess[str]) -> None:
        sh(f'apfs() {{ "{sys.executable}" -m apfs "$@"; }}; {refused.stderr.split("`")[1]}')

    follow(apfs("status", place, status=2))
    try:
        assert apfs("status", place).stderr == ""
        follow(apfs("mount", place, status=2))
        assert "is not an apfs mount" in apfs("status", place, status=2).stderr
    finally:
        apfs("umount", "--lazy", place, status=None)


def test_there_is_nothing_to_watch(tmp_path: Path) -> None:
    shown = on_terminal("status", "--watch", str(tmp_path / "nowhere"))
    assert f"apfs: {tmp_path}/nowhere does not exist: `mkdir -p " in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("command", ["status", "journal", "record --root"])
def test_dead_mount(command: str, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("an ordinary user mounts by a helper, which clears dead mounts away")
    # Without the mount helper in PATH nobody clears the mount when the server is killed.
    sh('PATH=/nonexistent "$1" -m apfs mount "$2"', sys.executable, str(tmp_path))
    pid = server_of(tmp_path)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    said = f"apfs: the server of {tmp_path} is gone: `apfs umount {tmp_path}` and mount again\n"
    result = apfs(*command.split(), str(tmp_path), status=None)
    apfs("umount", str(tmp_path))
    assert (result.returncode, result.stderr) == (2, said)


def test_users(mount: Mounter, tmp_path: Path) -> None:
    """Whoever is let in sees both; who is not is told so."""
    if os.geteuid():
        pytest.skip("only root can be two users")
    user = "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all"
    let_in(tmp_path)
    probe = sh(f'{user} "$1" -c "import apfs, rich"', sys.executable, status=None)
    if probe.returncode:
        pytest.skip(f"an ordinary user cannot read this checkout or its interpreter: {probe.stderr.strip()}")
    open_to_all, private = mount(), mount("default", "--no-allow-other")
    for command in ("status", "journal"):
        script = f'{user} "$1" -m apfs {command} "$2"'
        refuse(open_to_all)
        shown = sh(script, sys.executable, str(open_to_all)).stdout
        assert shown == apfs(command, str(open_to_all)).stdout != ""
        refused = sh(script, sys.executable, str(private), status=2)
        assert refused.stderr == (
            f"apfs: {private} gives access only to the user who mounted it: "
            "be that user, or have it mounted with --allow-other\n"
        )
    for words in (f"exec --mount {private} true", f"migrate {private} {private} {UUID}"):
        result = sh(f'{user} "$1" -P -m apfs {words}', sys.executable, status=None)
        assert "gives access only to the user who mounted it" in result.stderr


# -- journal ------------------------------------------------------------------------------------------


def recording(host: Path) -> str:
    """Return the journal with its header, which is what can be replayed."""
    return (host / "ctl/header").read_text() + (host / "ctl/journal").read_text()


def test_journal(host: Path) -> None:
    assert apfs("journal", str(host)).stdout == ""
    (host / "sys/bus/ap/config_time").write_text("60\n")
    refuse(host)
    assert apfs("journal", str(host)).stdout == (
        "     1  store      /sys/bus/ap/config_time '60\\n'\n"
        f"     2  refusal    write /sys/bus/ap/ap_domain '999\\n': EINVAL: {REFUSED}\n"
    )
    result = apfs("journal", "--json", str(host))
    assert result.stdout == recording(host)


def test_selection(host: Path) -> None:
    for _ in range(3):
        verb(host)
        refuse(host)
    records = [json.loads(line) for line in (host / "ctl/journal").read_text().splitlines()]

    def shown(*options: str) -> list[int]:
        lines = apfs("journal", "--json", *options, str(host)).stdout.splitlines()
        return [json.loads(line)["seq"] for line in lines]

    def of(*types: str) -> list[int]:
        return [record["seq"] for record in records if record["type"] in types]

    assert shown() == [0, *(record["seq"] for record in records)]
    assert shown("--lines", "0") == []
    assert shown("-n", "2") == [records[-2]["seq"], records[-1]["seq"]]
    assert shown("-n", "100000") == shown()[1:]
    assert shown("--type", "refusal") == of("refusal")
    assert shown("--type", "refusal", "--type", "verb") == of("refusal", "verb")
    assert shown("--type", "verb", "-n", "2") == of("verb")[-2:]
    assert shown("--type", "crash") == []
    text = apfs("journal", "--type", "verb", "-n", "2", str(host)).stdout
    assert [int(line.split()[0]) for line in text.splitlines()] == of("verb")[-2:]


def test_wrong_options(host: Path) -> None:
    said = apfs("journal", "--type", "refusals", str(host), status=2).stderr
    assert "'refusals' is not a type of records: there are store, refusal, uevent" in said
    assert apfs("journal", "--lines=-1", str(host), status=2).stderr


def test_follow(host: Path, follow: Callable[..., Follower]) -> None:
    refuse(host)
    people, machine = follow(str(host)), follow("--json", "--type", "refusal", "-n", "1", str(host))
    assert people.line().endswith(f"EINVAL: {REFUSED}\n")
    assert json.loads(machine.line())["why"] == REFUSED
    for number in range(2, 8, 2):
        verb(host, "clear-faults")
        assert people.line() == f"{number:>6}  verb       clear-faults\n"
        refuse(host)
        assert people.line().split()[:2] == [str(number + 1), "refusal"]
        assert json.loads(machine.line())["seq"] == number + 1


def test_follow_begins_with_ten(host: Path, follow: Callable[..., Follower]) -> None:
    for _ in range(12):
        refuse(host)
    follower = follow(str(host))
    assert [int(follower.line().split()[0]) for _ in range(10)] == list(range(3, 13))


def test_many_records_at_once(mount: Mounter, follow: Callable[..., Follower]) -> None:
    """More than one read returns: nothing is lost, doubled or broken at the borders."""
    host = mount("largest")
    refuse(host)
    follower = follow("--json", str(host))
    follower.line()
    (host / "sys/bus/ap/apmask").write_text("-0-9")
    for number in range(2, 10 * 2 * 256 + 4):
        assert json.loads(follower.line())["seq"] == number


def test_dropped_records_are_told(mount: Mounter) -> None:
    host = mount("largest")
    for mask in ("0x0", "+0-255"):  # each moves 65,536 queues
        (host / "sys/bus/ap/apmask").write_text(mask)
    result = apfs("journal", "--type", "store", str(host))
    lines = result.stdout.splitlines()
    last = int(lines[-1].split()[0])
    assert len(lines) == 2
    assert lines[-1] == f"{last}  store      /sys/bus/ap/apmask '+0-255'"
    dropped = last - CAPACITY
    assert result.stderr == (
        f"apfs: the journal has dropped {dropped:,} records before this: it keeps the newest 200,000\n"
    )


def test_interrupt_ends_it_as_tail(host: Path, follow: Callable[..., Follower]) -> None:
    refuse(host)
    follower = follow(str(host))
    follower.line()
    follower.process.send_signal(signal.SIGINT)
    assert follower.end() == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("how", ["unmounted lazily", "server ended", "server killed"])
def test_end_of_the_mount_ends_it(host: Path, follow: Callable[..., Follower], how: str) -> None:
    refuse(host)
    follower = follow(str(host))
    follower.line()
    if how == "unmounted lazily":
        apfs("umount", "--lazy", str(host))
    else:
        os.kill(server_of(host), signal.SIGTERM if how == "server ended" else signal.SIGKILL)
    status, rest, said = follower.end()
    assert (status, rest) == (1, "")
    assert said.startswith(f"apfs: {host} was unmounted")
    assert said.count("\n") == 1


def test_another_mount_is_not_the_end(host: Path, mount: Mounter, follow: Callable[..., Follower]) -> None:
    refuse(host)
    follower = follow(str(host))
    follower.line()
    mount()
    refuse(host)
    assert follower.line().split()[0] == "2"


def test_reader_who_goes_away_ends_it(host: Path, follow: Callable[..., Follower]) -> None:
    refuse(host)
    follower = follow(str(host))
    follower.line()
    follower.stdout.close()
    assert follower.process.wait(TIMEOUT) == -signal.SIGPIPE
    assert follower.process.stderr is not None
    assert follower.process.stderr.read() == b""


# -- inside apfs exec ---------------------------------------------------------------------------------


def test_inside_exec_the_mount_may_be_left_out(host: Path) -> None:
    script = '! echo 999 > /sys/bus/ap/ap_domain; "$0" -m apfs status; "$0" -m apfs journal; "$0" -m apfs status --json'
    command = ["exec", "--mount", str(host), "--", "bash", "-c", script, sys.executable]
    shown = apfs(*command).stdout
    assert shown == "".join(
        apfs(*words, str(host)).stdout for words in (("status",), ("journal",), ("status", "--json"))
    )
    assert REFUSED in shown
