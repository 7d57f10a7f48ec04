"""Mounting and unmounting: every way in, every way out, and what is said when there is no way."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, apfs, let_in, server_of, sh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Mounter = Callable[..., Path]


def is_mounted(path: Path) -> bool:
    return f" {path} fuse.apfs " in Path("/proc/self/mounts").read_text()


def close_dead(descriptor: int) -> None:
    """Close a file whose server is gone, which close(2) reports."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not our child is gone, or is nothing but a zombie of somebody else's."""
    with contextlib.suppress(ProcessLookupError), open(os.pidfd_open(pid), "rb") as descriptor:  # noqa: PTH123
        ready, _, _ = select.select([descriptor], [], [], TIMEOUT)
        assert ready


def test_mount_returns_when_the_tree_answers(mount: Mounter) -> None:
    host = mount()
    assert (host / "sys/bus/ap/bindings").read_text() == "12/12 (complete)\n"


def test_server_has_a_session_of_its_own_and_keeps_no_directory(mount: Mounter) -> None:
    pid = server_of(mount())
    _, _, group, session, terminal = stat_of(pid)
    assert (group, session, terminal) == (str(pid), str(pid), "0")
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    descriptors = {link.name: os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115
    assert {name for name in descriptors.values() if name.startswith("/")} <= {"/dev/null", "/dev/fuse"}
    assert [descriptors[stream] for stream in "012"] == ["/dev/null"] * 3


def stat_of(pid: int) -> list[str]:
    """State, parent, process group, session and controlling terminal of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:5]


def test_server_is_the_command_itself_and_the_only_process_that_stays(tmp_path: Path) -> None:
    """Besides the mount helper: orphans come to the script, which tells their command lines and the server's status."""
    script = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
subprocess.run(sys.argv[1:], check=True)
with open(f"/proc/self/task/{os.getpid()}/children") as children:
    lines = {int(pid): open(f"/proc/{pid}/cmdline").read().split("\\0")[:-1] for pid in children.read().split()}
servers = [pid for pid, words in lines.items() if words[0] != "fusermount3"]
print([lines[server] for server in servers] == [sys.argv[1:]])
subprocess.run([*sys.argv[1:4], "umount", sys.argv[-1]], check=True)
print([os.waitpid(server, 0)[1] for server in servers])
"""
    command = [sys.executable, "-m", "apfs", "mount", str(tmp_path)]
    result = subprocess.run(
        [sys.executable, "-c", script, *command], check=False, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.stdout == "True\n[0]\n", result


@pytest.mark.parametrize("place", [".", "", "link", "link/"])
def test_any_name_of_a_directory_will_do(tmp_path: Path, place: str) -> None:
    """The current directory, its name, and links to it, for all commands."""
    real, link = tmp_path / "z", tmp_path / "link"
    real.mkdir()
    link.symlink_to("z")
    place = {"": str(real), ".": "."}.get(place, str(tmp_path / place))
    script = """
        cd "$3"
        "$1" -P -m apfs mount "$2" && findmnt --noheadings --output TARGET --types fuse.apfs "$3"
        "$1" -P -m apfs mount "$2"; echo $?
        "$1" -P -m apfs status "$2" > /dev/null; echo $?
        "$1" -P -m apfs exec --mount "$2" true; echo $?
        "$1" -P -m apfs umount "$2"; echo $?
    """
    result = sh(script, sys.executable, place, str(real))
    assert result.stdout == f"{real}\n2\n0\n0\n0\n"
    assert not is_mounted(real)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to("circle")
    assert "too many levels" in apfs("mount", str(circle), status=2).stderr
    script = 'cd "$2"; rmdir "$2"; for word in mount umount status; do "$1" -P -m apfs $word z; done'
    circle.unlink()
    said = sh(script, sys.executable, str(tmp_path), status=None).stderr
    assert said == 3 * "apfs: the current directory does not exist any more: `cd` to one that does\n"


def test_server_is_no_second_caller(tmp_path: Path) -> None:
    """What a program does after mounting, in whatever way, is done once."""
    script = """
import atexit, os, subprocess, sys
from apfs.cli.main import main
def done(what):
    with open(sys.argv[2], "a") as file:
        print(what, file=file)
atexit.register(done, "exit")
try:
    main(["mount", sys.argv[1]], standalone_mode=False)
    subprocess.run(["umount", sys.argv[1]], check=True)
    os.wait()
except BaseException as error:
    done(repr(error))
finally:
    done("finally")
"""
    log = tmp_path / "log"
    (tmp_path / "z").mkdir()
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "z"), str(log)], check=True, timeout=TIMEOUT)
    assert log.read_text() == "finally\nexit\n"


@pytest.mark.parametrize(
    ("what", "message", "status"),
    [
        ("raise BrokenPipeError(32, 'gone')", "BrokenPipeError: [Errno 32] gone", 1),
        ("print('no way', file=sys.stderr); raise SystemExit(2)", "no way", 2),
        ("sys.exit('no way')", "no way", 1),
        ("sys.exit()", "the server ended with status 0", 1),
        ("os.kill(os.getpid(), 9)", "the server was killed by signal 9, as Linux does when memory runs out", 1),
        ("os.kill(os.getpid(), 15)", "the server was killed by signal 15", 1),
    ],
)
def test_a_server_that_gives_up_says_why(tmp_path: Path, what: str, message: str, status: int) -> None:
    script = f"""
import os, sys
from apfs.cli.main import main
from apfs.fuse import session
def serve(*arguments, **options):
    {what}
session.serve = serve
main(["mount", sys.argv[1]])
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert result.stderr.endswith(f"{message}\n")
    assert (result.stdout, result.stderr.count("\n"), result.returncode) == ("", 1, status)


def test_no_descriptor_of_the_caller_is_inherited(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "apfs", "mount", str(tmp_path)]
    subprocess.run(command, check=True, pass_fds=[writer], timeout=TIMEOUT)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], TIMEOUT)
    assert ready
    assert os.read(reader, 1) == b""
    assert (tmp_path / "sys/bus/ap/scans").read_text() == "1\n"
    os.close(reader)
    apfs("umount", str(tmp_path))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(tmp_path: Path, closed: str) -> None:
    sh(f'"$1" -m apfs mount "$2" {closed}', sys.executable, str(tmp_path))
    pid = server_of(tmp_path)
    assert [os.readlink(f"/proc/{pid}/fd/{stream}") for stream in range(3)] == ["/dev/null"] * 3  # noqa: PTH115
    assert (tmp_path / "sys/bus/ap/scans").read_text() == "1\n"
    apfs("umount", str(tmp_path))


def test_the_end_of_a_terminal_does_not_end_the_mount(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    script = '"$1" -m apfs mount "$2"; echo mounted; kill -INT 0; read line'
    command = ["bash", "-c", script, "bash", sys.executable, str(tmp_path)]
    with subprocess.Popen(["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave) as shell:
        os.close(slave)
        assert os.read(master, 100) == b"mounted\r\n"
        shell.wait(TIMEOUT)
    os.close(master)
    assert (tmp_path / "sys/bus/ap/scans").read_text() == "1\n"
    apfs("umount", str(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount(mount: Mounter, number: signal.Signals) -> None:
    host = mount()
    pid = server_of(host)
    held = os.open(host / "sys/bus/ap/bindings", os.O_RDONLY)  # an open file does not keep the server alive
    os.kill(pid, number)
    wait_for_end(pid)
    assert not is_mounted(host)
    close_dead(held)


def test_umount_command(mount: Mounter) -> None:
    host = mount()
    pid = server_of(host)
    apfs("umount", str(host))
    wait_for_end(pid)
    assert not is_mounted(host)


def test_fusermount(mount: Mounter) -> None:
    host = mount()
    pid = server_of(host)
    subprocess.run(["fusermount3", "-u", str(host)], check=True)
    wait_for_end(pid)
    assert not is_mounted(host)


def test_umount_while_busy_changes_nothing(mount: Mounter) -> None:
    host = mount()
    with (host / "sys/bus/ap/scans").open():
        result = apfs("umount", str(host), status=1)
        assert "busy" in result.stderr
        assert "--lazy" in result.stderr
        assert (host / "sys/bus/ap/scans").read_text() == "1\n"
    apfs("umount", str(host))


def test_killed_server_leaves_nothing_that_umount_cannot_clear(mount: Mounter) -> None:
    host = mount()
    pid = server_of(host)
    held = os.open(host / "sys/bus/ap/scans", os.O_RDONLY)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    apfs("umount", str(host), status=None)  # the mount helper may have cleared it already
    assert not is_mounted(host)
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.read(held, 10)
    close_dead(held)


@pytest.fixture
def without_helper(tmp_path: Path) -> Iterator[Path]:
    """Mount a host that nothing clears away when its server is killed: the mount helper is not in PATH."""
    if os.geteuid():
        pytest.skip("only root mounts without the mount helper, which clears dead mounts away")
    mountpoint = tmp_path / "dead"
    mountpoint.mkdir()
    sh('PATH=/nonexistent "$1" -m apfs mount "$2"', sys.executable, str(mountpoint))
    yield mountpoint
    while is_mounted(mountpoint):
        sh('umount --lazy "$1"', str(mountpoint))


def kill_server(mountpoint: Path) -> None:
    pid = server_of(mountpoint)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    assert is_mounted(mountpoint)


def test_new_mount_clears_a_dead_one_away(without_helper: Path) -> None:
    mountpoint = without_helper
    kill_server(mountpoint)
    apfs("mount", str(mountpoint))
    assert (mountpoint / "sys/bus/ap/scans").read_text() == "1\n"
    assert Path("/proc/self/mounts").read_text().count(f" {mountpoint} fuse.apfs ") == 1
    apfs("umount", str(mountpoint))
    assert not is_mounted(mountpoint)


def test_a_dead_mount_that_its_mount_helper_clears_away_meanwhile(without_helper: Path) -> None:
    """The helper is faster by an instant: it does so just before the next mount would."""
    mountpoint = without_helper
    kill_server(mountpoint)
    script = """
import subprocess, sys
from apfs.cli.main import main
from apfs.mounts import server
unmount = server.unmount
def slower(mountpoint):
    subprocess.run(["umount", "--lazy", mountpoint], check=True)
    unmount(mountpoint)
server.unmount = slower
main(["mount", sys.argv[1]])
"""
    subprocess.run([sys.executable, "-c", script, str(mountpoint)], check=True, timeout=TIMEOUT)
    assert (mountpoint / "sys/bus/ap/scans").read_text() == "1\n"


def test_a_dead_mount_in_use_can_be_unmounted(without_helper: Path) -> None:
    mountpoint = without_helper
    held = os.open(mountpoint / "sys/bus/ap/scans", os.O_RDONLY)
    kill_server(mountpoint)
    apfs("umount", str(mountpoint))
    assert not is_mounted(mountpoint)
    close_dead(held)


def test_nothing_is_imported_from_the_current_directory(tmp_path: Path) -> None:
    """Root may be in a directory in which others write."""
    (tmp_path / "host").mkdir()
    (tmp_path / "json.py").write_text("raise SystemExit('json.py of the current directory was run')\n")
    command = Path(sys.executable).with_name("apfs")
    script = 'cd "$2"; "$1" mount host; cat host/sys/bus/ap/scans; "$1" exec --mount host true; "$1" umount host'
    assert sh(f"set -e; {script}", str(command), str(tmp_path)).stdout == "1\n"


def test_mount_twice_is_refused(mount: Mounter) -> None:
    host = mount()
    result = apfs("mount", str(host), status=2)
    assert "already has an apfs mounted" in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_mount_point(tmp_path: Path) -> None:
    result = apfs("mount", str(tmp_path / "nowhere"), status=2)
    assert f"mkdir -p {tmp_path}/nowhere" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("mount",), ("journal",), ("exec", "true", "--mount")])
def test_a_directory_that_a_user_may_not_look_into(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Advice to create what may be there would be wrong."""
    place = tmp_path / "closed/z"
    place.parent.mkdir()
    user: tuple[str, ...] = ()
    if os.geteuid() == 0:
        let_in(tmp_path)
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    place.parent.chmod(0)
    words = (*words[::2], str(place), *words[1:2])
    command = [*user, sys.executable, "-m", "apfs", *words]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    place.parent.chmod(0o755)
    assert result.returncode == (125 if words[0] == "exec" else 2)
    assert result.stderr == f"apfs: {place}: no permission to search the directories above it\n"


def test_mount_point_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = apfs("mount", str(tmp_path / "file"), status=2)
    assert "not a directory" in result.stderr


@pytest.mark.parametrize(("mode", "mine"), [(0o755, False), (0o1777, False), (0o555, True), (0o666, True)])
def test_mount_point_that_a_user_may_not_have(tmp_path: Path, mode: int, *, mine: bool) -> None:
    """fusermount3 would say in other words what is wrong with it, and not what would be right."""
    place = tmp_path / "place"
    place.mkdir()
    user: tuple[str, ...] = ()
    if os.geteuid() == 0:
        let_in(tmp_path)
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        os.chown(place, 65534 if mine else 0, 0)
    elif not mine:
        pytest.skip("only root can make a directory of another user")
    place.chmod(mode)
    command = [*user, sys.executable, "-m", "apfs", "mount", str(place)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    place.chmod(0o755)
    assert result.returncode == 2
    assert result.stderr.startswith(f"apfs: mount point {place}: users other than root mount only on directories that")
    assert "`mkdir`" in result.stderr


def test_bad_scenario_names_file_line_and_reason(tmp_path: Path) -> None:
    scenario = tmp_path / "bad.toml"
    scenario.write_text('name = "bad"\n\n[[card]]\nadapter = 5\ntype = "CEX3C"\n')
    result = apfs("mount", "--scenario", str(scenario), str(tmp_path), status=2)
    assert result.stderr.startswith(f"apfs: {scenario}:5: type: unknown card type 'CEX3C'")
    assert result.stderr.count("\n") == 1


def test_unknown_scenario_lists_the_known(tmp_path: Path) -> None:
    result = apfs("mount", "--scenario", "nosuch", str(tmp_path), status=2)
    assert "migration-source" in result.stderr


def test_what_the_mount_helper_says_is_told(tmp_path: Path) -> None:
    result = apfs("mount", "--fuse-option", "nonsense", str(tmp_path), status=1)
    assert result.stderr == (
        "apfs: fuse: unknown option(s): `-o nonsense'; the mount was refused (fuse_session_new() failed)\n"
    )


def test_status_of_a_server_that_says_nothing(tmp_path: Path) -> None:
    script = """
import os, sys
from apfs.mounts import server, table
try:
    server.fork_server(sys.argv[1], lambda ready: os.kill(os.getpid(), 9))
except table.MountsError as error:
    print(error, error.exit_status)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.stdout == "the server was killed by signal 9, as Linux does when memory runs out 1\n"


def test_host_that_cannot_be_booted_names_file_line_and_reason(tmp_path: Path) -> None:
    scenario = tmp_path / "bad.toml"
    scenario.write_text(
        '[qci]\ndomains = [4]\n\n[[mdev]]\nuuid = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"\nadapters=[5]\ndomains=[4]\n'
    )
    result = apfs("mount", "--scenario", str(scenario), str(tmp_path), status=2)
    assert result.stderr.startswith(f"apfs: {scenario}:4: queue 05.0004 is reserved")
    assert result.stderr.count("\n") == 1


def test_umount_of_something_else(tmp_path: Path) -> None:
    result = apfs("umount", str(tmp_path), status=1)
    assert "not an apfs mount" in result.stderr


def test_without_pyfuse3_mount_says_what_to_install(tmp_path: Path) -> None:
    script = "import sys; sys.modules['pyfuse3'] = None; from apfs.cli.main import main; main()"
    command = [sys.executable, "-c", script, "mount", str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 2
    assert "pip install 'apfs[mount]'" in result.stderr


@pytest.mark.parametrize("words", [["mount"], ["exec", "--"]])
def test_pyfuse3_that_cannot_be_used_is_not_taken_for_a_defect(tmp_path: Path, words: list[str]) -> None:
    """One of an older release, as Debian 12 has it, or for a libfuse that is not there."""
    (tmp_path / "pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: cannot open shared object file')")
    (tmp_path / "place").mkdir()
    command = [sys.executable, "-m", "apfs", *words, str(tmp_path / "place") if words == ["mount"] else "true"]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)
    assert result.returncode == (2 if words == ["mount"] else 125)
    assert result.stderr == (
        "apfs: pyfuse3 or trio cannot be used (libfuse3.so.3: cannot open shared object file): "
        "install the package fuse3, and then `pip install --upgrade --force-reinstall pyfuse3 trio`\n"
    )


def test_without_dev_fuse_mount_says_so(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("hiding /dev/fuse needs root")
    script = 'mount -t tmpfs none /dev && exec "$1" -m apfs mount "$2"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 2
    assert "there is no /dev/fuse" in result.stderr


def test_foreground_ends_with_interrupt(tmp_path: Path) -> None:
    mountpoint = tmp_path / "host"
    mountpoint.mkdir()
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "apfs", "mount", "--foreground", "--ready-fd", str(writer), str(mountpoint)]
    with subprocess.Popen(command, pass_fds=[writer]) as server:
        os.close(writer)
        with open(reader) as ready:  # noqa: PTH123
            assert ready.read() == "ready"
        assert (mountpoint / "sys/bus/ap/scans").read_text() == "1\n"
        server.send_signal(signal.SIGINT)
        assert server.wait(TIMEOUT) == 0
    assert not is_mounted(mountpoint)


@pytest.mark.parametrize("name", ["host", "a host"])
def test_many_files_can_be_closed_at_once(tmp_path: Path, name: str) -> None:
    """The kernel does not hold releases back while others wait, as far as it lets itself be told."""
    if os.geteuid():
        pytest.skip("fusectl is mounted by root")
    mountpoint = tmp_path / name
    mountpoint.mkdir()
    script = """
        set -e
        mount -t fusectl none /sys/fs/fuse/connections
        "$1" -m apfs mount "$2"
        device=$(mountpoint --fs-devno "$2")
        cat "/sys/fs/fuse/connections/${device#*:}/max_background"
        "$1" -m apfs umount "$2"
    """
    command = ["unshare", "--mount", "bash", "-c", script, "bash", sys.executable, str(mountpoint)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert (result.returncode, result.stdout) == (0, "1000\n"), result


def test_ordinary_user(tmp_path: Path) -> None:
    """An ordinary user mounts, owns the files, uses them and unmounts, in a mount namespace of the test's own."""
    if os.geteuid():
        pytest.skip("this run is an ordinary user's already: all other tests show the same")
    nobody = 65534
    mountpoint = tmp_path / "host"
    mountpoint.mkdir()
    let_in(tmp_path)
    os.chown(mountpoint, nobody, nobody)
    user = f"setpriv --reuid {nobody} --regid {nobody} --clear-groups --inh-caps=-all"
    probe = sh(f'{user} "$1" -c "import apfs, pyfuse3"', sys.executable, status=None)
    if probe.returncode:
        pytest.skip(f"an ordinary user cannot read this checkout or its interpreter: {probe.stderr.strip()}")
    script = f"""
        set -e
        mknod -m 0666 "$3/fuse" c 10 229
        mount --bind "$3/fuse" /dev/fuse
        {user} "$1" -m apfs mount "$2"
        {user} sh -c 'stat -c "%u %a" "$1/sys/bus/ap/apmask" "$1/dev/vfio/vfio"' sh "$2"
        {user} sh -c 'echo -5 > "$1/sys/bus/ap/apmask"' sh "$2"
        {user} cat "$2/sys/bus/ap/apmask"
        if {user} cat "$2/sys/bus/ap/uevent" 2>&1; then exit 1; fi
        {user} "$1" -m apfs umount "$2"
        if grep " $2 fuse.apfs " /proc/self/mounts; then exit 1; fi
    """
    command = ["unshare", "--mount", "bash", "-c", script, "bash", sys.executable, str(mountpoint), str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"{nobody} 644", f"{nobody} 666"]
    assert lines[2].startswith("0xfbff")
    assert "Permission denied" in lines[3]
