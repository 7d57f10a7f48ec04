"""`apfs exec`: what a command sees, what it gets back, and that nothing of it stays."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, apfs, create_mdev, sh
from tests.tools.conftest import EXAMPLE, inside

if TYPE_CHECKING:
    from collections.abc import Callable

    Mounter = Callable[..., Path]

EXEC = [sys.executable, "-m", "apfs", "exec"]


def leftovers(tmp: Path) -> tuple[list[str], list[str]]:
    """Mounts and directories that a sandbox with this TMPDIR has left behind."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(tmp) in line]
    return mounts, [str(path) for path in tmp.iterdir()]


def processes_of(marker: str) -> list[int]:
    """Processes (zombies aside) that have a text in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(entry.name))
    return found


@pytest.fixture
def private_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let sandboxes of their own hosts make their mount points here."""
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp))
    return tmp


def test_emulated_entries_are_at_their_real_paths() -> None:
    result = inside(
        """
        cat /sys/bus/ap/bindings /sys/devices/ap/card00/type
        readlink -f /sys/bus/ap/devices/00.0006/driver /sys/class/vfio/0 /sys/bus/mdev/devices/*/mdev_type
        ls /dev/vfio /dev/vfio-ap /dev/apfs
        test -d /run/lock -a -d /run/udev
        echo "$SYSTEMD_DEVICE_VERIFY_SYSFS $APFS_MOUNT"
        echo help > /dev/apfs/ctl/console
        """
    )
    assert result.stdout.split("\n") == [
        "9/9 (complete)", "CEX8C",
        "/sys/bus/ap/drivers/cex4queue", "/sys/devices/virtual/vfio/0",
        "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough",
        "/dev/apfs:", "ctl", "dev", "guests", "sys", "",
        "/dev/vfio:", "0", "devices", "vfio", "",
        "/dev/vfio-ap:", "669d9b23-fe1b-4ecb-be08-a2fabca99b71",
        "0 /dev/apfs", "",
    ]  # fmt: skip


def test_everything_else_is_the_real_machine(tmp_path: Path) -> None:
    listing = "for d in /sys/bus /sys/class /sys/devices /sys/module /sys/kernel /dev /etc; do ls -1 $d; done"
    outside, within = (set(run(listing).stdout.split()) for run in (sh, inside))
    assert outside - within <= {"vfio"}
    assert sh("readlink -f /sys/class/net/*; cat /sys/kernel/mm/transparent_hugepage/enabled").stdout == inside(
        "readlink -f /sys/class/net/*; cat /sys/kernel/mm/transparent_hugepage/enabled", options=("--net", "host")
    ).stdout  # fmt: skip
    inside('echo written > "$1"', str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "written\n"
    inside('test "$PWD" = "$1"', os.getcwd())  # noqa: PTH109


def test_the_real_machine_is_not_touched() -> None:
    """For root in a mount namespace, with directories of its own where other programs are at work meanwhile."""
    script = """
        if [ "$(id -u)" = 0 ]; then
            for directory in /run /dev/shm /dev/pts; do mount --types tmpfs none $directory; done
            mkdir /run/lock /run/udev
        fi
        listing() { find /sys /dev /run -maxdepth 2 2>/dev/null | sort; }
        listing
        echo =====
        "$@" || exit
        listing
    """
    changes = "echo 0 > /sys/bus/ap/apmask; touch /dev/new /run/new; mkdir /run/lock/x; rm -r /run/udev"
    namespace = "" if os.geteuid() else "unshare --mount"
    command = [*EXEC, "--scenario", str(EXAMPLE), "--", "bash", "-c", changes]
    before, after = sh(f'exec {namespace} bash -c "$@"', script, "bash", *command).stdout.split("=====\n")
    assert "/run\n" in before
    assert after == before


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -TERM $$"], 128 + 15),
        (["nosuchcommand"], 127),
        (["/nonexistent/command"], 127),
        (["/etc/passwd"], 126),
        (["/" + "x" * 300], 127),
    ],
)
def test_exit_status(command: list[str], status: int) -> None:
    apfs("exec", *command, status=status)


def test_a_link_that_leads_nowhere_is_no_command(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    apfs("exec", str(tmp_path / "link"), status=127)


def test_failures_of_its_own_are_125(tmp_path: Path) -> None:
    assert "not an apfs mount" in apfs("exec", "--mount", str(tmp_path), "true", status=125).stderr
    assert "no scenario of that name" in apfs("exec", "--scenario", "nosuch", "true", status=125).stderr
    usage = {
        ("--mount", "/x", "--scenario", "default", "true"): "exclude each other",
        (): "Missing argument",
        ("--scenari", "largest", "true"): "No such option",
        ("--net", "nosuch", "true"): "is not one of",
        ("--bind", "/srv:relative", "true"): "DEST is absolute",
        ("--bind", "/srv", "true"): "SRC:DEST",
        ("--tmpfs", "relative", "true"): "absolute DEST",
        ("--tmpfs", "", "true"): "absolute DEST",
    }
    for words, message in usage.items():
        assert message in apfs("exec", *words, status=125).stderr


def test_missing_bubblewrap_is_named(tmp_path: Path) -> None:
    script = 'PATH="$2" "$1" -m apfs exec /bin/true'
    result = sh(script, sys.executable, str(tmp_path), status=125)
    assert "install the package bubblewrap" in result.stderr


def test_dead_mount_is_detected_before_the_command_starts(mount: Mounter, tmp_path: Path) -> None:
    del mount
    if os.geteuid():
        pytest.skip("only root mounts without the mount helper, which clears dead mounts away")
    mountpoint = tmp_path / "dead"
    mountpoint.mkdir()
    sh('PATH=/nonexistent "$1" -m apfs mount "$2"', sys.executable, str(mountpoint))
    (server,) = processes_of(str(mountpoint))
    os.kill(server, signal.SIGKILL)
    result = apfs("exec", "--mount", str(mountpoint), "sh", "-c", "echo started", status=125)
    assert "is gone" in result.stderr
    assert result.stdout == ""
    apfs("umount", str(mountpoint))


def test_several_commands_share_a_mounted_host(mount: Mounter) -> None:
    host = mount()
    apfs("exec", "--mount", str(host), "sh", "-c", "echo -5 > /sys/bus/ap/apmask")
    assert apfs("exec", "--mount", str(host), "cat", "/sys/bus/ap/apmask").stdout.startswith("0xfbff")
    assert (host / "sys/bus/ap/apmask").read_text().startswith("0xfbff")


def test_what_comes_and_goes_is_seen_inside(mount: Mounter) -> None:
    """A mediated device made outside appears in every directory inside, and goes again."""
    host = mount()
    script = (
        "echo ready; read line; ls /sys/class/vfio /sys/kernel/iommu_groups /dev/vfio-ap; read line; ls /sys/class/vfio"
    )
    with subprocess.Popen(
        [*EXEC, "--mount", str(host), "bash", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdin
        assert command.stdout
        assert command.stdout.readline() == "ready\n"
        mdev = create_mdev(host)
        command.stdin.write("\n")
        command.stdin.flush()
        lines = [command.stdout.readline() for _ in range(8)]
        assert [line.strip() for line in lines] == [
            "/dev/vfio-ap:", mdev.name, "", "/sys/class/vfio:", "0", "", "/sys/kernel/iommu_groups:", "0",
        ]  # fmt: skip
        (mdev / "remove").write_text("1")
        command.stdin.write("\n")
        command.stdin.close()
        assert command.stdout.read() == ""


def test_standard_input_from_a_pipe() -> None:
    command = [*EXEC, "tr", "a-z", "A-Z"]
    result = subprocess.run(command, check=True, capture_output=True, text=True, input="hello", timeout=TIMEOUT)
    assert result.stdout == "HELLO"


def test_nested(private_tmp: Path) -> None:
    inner = f"{sys.executable} -m apfs exec --scenario empty cat /sys/bus/ap/bindings"
    assert apfs("exec", "sh", "-c", f"cat /sys/bus/ap/bindings; {inner}").stdout == "12/12 (complete)\n0/0 (complete)\n"
    # A warning that nobody can be told of, here of VFIO ioctls that are not served, does not keep it from going on.
    assert apfs("exec", "sh", "-c", f"{inner} 2> /dev/full").stdout == "0/0 (complete)\n"
    assert leftovers(private_tmp) == ([], [])


def test_an_ap_bus_that_the_machine_has_is_covered_wholly() -> None:
    """As on s390x: here the machine around is a host of its own, with cards, devices and their nodes."""
    names = ("ap", "card0*", "*vfio*", "*matrix*", "*mdev*", "*zcrypt*", "iommu_groups")
    found = " -o ".join(f"-name '{name}' -o -path '*/{name}/*'" for name in names)
    others = "-path /sys/fs -o -path /sys/kernel/debug"
    script = f"find /sys /dev \\( {others} \\) -prune -o \\( {found} \\) -print | sort"
    inner = f"{sys.executable} -m apfs exec --scenario empty sh -c {shlex.quote(script)}"
    alone = sh(inner).stdout
    around = apfs("exec", "--scenario", "kernel-doc", "sh", "-c", f"ls -d /sys/devices/ap/card05 && {inner}").stdout
    assert around == f"/sys/devices/ap/card05\n{alone}"
    assert "/sys/bus/ap/apmask\n" in alone


def test_nothing_stays_after_success_failure_and_daemons(private_tmp: Path) -> None:
    apfs("exec", "true")
    apfs("exec", "false", status=1)
    apfs("exec", "sh", "-c", "setsid sleep 271828 >/dev/null 2>&1 &")
    assert leftovers(private_tmp) == ([], [])
    assert processes_of("271828") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_stays_after_a_signal(private_tmp: Path, number: signal.Signals) -> None:
    """Whatever ends apfs exec, even without a chance to clean up, the command, the server and the mount go."""
    reader, writer = os.pipe()
    command = [*EXEC, "bash", "-c", f"echo started >&{writer}; exec sleep 314159"]
    with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL) as sandbox:
        os.close(writer)
        assert os.read(reader, 100) == b"started\n"
        servers = processes_of(str(private_tmp))
        assert servers
        watched = [os.pidfd_open(pid) for pid in [*processes_of("314159"), *servers] if pid != sandbox.pid]
        sandbox.send_signal(number)
        sandbox.wait(TIMEOUT)
        # The pipe ends when the last process of the sandbox does; the servers are waited for one by one.
        assert os.read(reader, 100) == b""
        for descriptor in watched:
            _wait(descriptor)
    assert leftovers(private_tmp) == ([], [])


def _wait(pidfd: int) -> None:
    ready, _, _ = select.select([pidfd], [], [], TIMEOUT)
    assert ready
    os.close(pidfd)


def test_interrupt_from_the_terminal_goes_to_the_command(private_tmp: Path) -> None:
    """Ctrl-C at a terminal: the command decides, and apfs returns what it returns."""
    master, slave = pty.openpty()
    script = "trap 'echo caught; exit 7' INT; echo ready; while :; do read -t 60 line; done"
    with subprocess.Popen([*EXEC, "bash", "-c", script], stdin=slave, stdout=slave, stderr=slave,
                          preexec_fn=lambda: _take_terminal(slave)) as sandbox:  # noqa: PLW1509 -- one thread  # fmt: skip
        os.close(slave)
        seen = b""
        while b"ready" not in seen:
            seen += os.read(master, 1000)
        os.write(master, b"\x03")
        while b"caught" not in seen:
            seen += os.read(master, 1000)
        assert sandbox.wait(TIMEOUT) == 7
    os.close(master)
    assert leftovers(private_tmp) == ([], [])


def _take_terminal(slave: int) -> None:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


def test_module_tools_act_on_the_emulated_host() -> None:
    result = inside(
        """
        modprobe -r vfio_ap && ls -d /sys/bus/ap/drivers/vfio_ap 2>/dev/null
        rmmod vfio_ap; echo "rmmod again: $?"
        modprobe vfio-ap && cat /sys/module/vfio_ap/initstate
        /sbin/modprobe -q nosuch; echo "unknown: $?"
        modprobe zcrypt_cex4; echo "loaded: $?"
        """,
        scenario="default",
    )
    assert result.stdout.splitlines() == ["rmmod again: 1", "live", "unknown: 1", "loaded: 0"]
    assert "Module vfio_ap is not currently loaded" in result.stderr


def test_options_of_module_tools() -> None:
    script = """
        there() { test -d /sys/module/$1; echo "$?"; }
        modprobe -n -r vfio_ap; there vfio_ap
        modprobe -rv vfio_ap; there vfio_ap
        modprobe --dry-run vfio_ap; there vfio_ap
        rmmod mdev vfio_iommu_type1 vfio; modprobe -va mdev vfio; there mdev; there vfio
        rmmod zcrypt_cex4; there zcrypt_cex4
        kmod modprobe vfio_ap; there vfio_ap
        modprobe --nosuch vfio_ap; echo "$?"
    """
    result = inside(script)
    assert result.stdout.splitlines() == ["0", "1", "1", "0", "0", "0", "0", "1"]
    assert "cannot be unloaded from an emulated host" in result.stderr
    assert "option --nosuch" in result.stderr


@pytest.mark.parametrize("command", ["modinfo --field=name nosuch", "kmod help", "kmod --version"])
def test_what_only_reads_of_modules_is_the_real_thing(command: str) -> None:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    real = sh(f"PATH={path}; {command}", status=None)
    shown = inside(command, status=None)
    assert (shown.returncode, shown.stdout, shown.stderr) == (real.returncode, real.stdout, real.stderr)


def test_module_in_use_is_not_unloaded() -> None:
    script = 'echo 1 > /dev/vfio-ap/*/guest; rmmod vfio_ap; echo "$?"; ls -d /sys/module/vfio_ap'
    result = inside(script)
    assert result.stdout.splitlines() == ["1", "/sys/module/vfio_ap"]
    assert "in use" in result.stderr


def test_a_module_loaded_later_appears(tmp_path: Path) -> None:
    scenario = tmp_path / "bare.toml"
    scenario.write_text("vfio_ap = false\n[qci]\ndomains = [6]\n[[card]]\nadapter = 0\ntype = 'CEX8C'\n")
    script = (
        "ls -d /sys/devices/vfio_ap/matrix; modprobe vfio_ap; cat /sys/class/mdev_bus/matrix/features; ls /dev/vfio"
    )
    result = inside(script, scenario=scenario)
    assert result.stdout.splitlines() == ["guest_matrix hotplug ap_config migratable", "vfio"]


@pytest.mark.parametrize("name", ["source", "pci-0000:00:1f.2"])
def test_binds_and_tmpfs(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.mkdir()
    (source / "file").write_text("x")
    options = ("--bind", f"{source}:/mnt", "--tmpfs", "/srv")
    assert inside("ls /mnt; ls -A /srv; touch /srv/y", options=options).stdout == "file\n"
    assert sh("ls -A /srv").stdout == ""


def test_new_directories_leave_ours_as_they_are(tmp_path: Path) -> None:
    options = ("--tmpfs", "/run/nosuch/inner", "--bind", f"{tmp_path}:/dev/nosuch")
    script = "ls -d /run/nosuch/inner /run/udev/control /run/apfs/bin/modprobe /dev/nosuch /dev/apfs/ctl"
    assert len(inside(script, options=options).stdout.split()) == 5
    assert not Path("/run/nosuch").exists()
    assert not Path("/dev/nosuch").exists()


def test_users_with_capabilities() -> None:
    """podman gives added capabilities to users other than root as well, with which bwrap does not run."""
    if os.geteuid():
        pytest.skip("only root can give capabilities")
    user = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    for capabilities in ("+sys_admin", "+sys_admin,+net_admin"):
        given = f"--inh-caps={capabilities} --ambient-caps={capabilities}"
        script = f'{user} {given} "$1" -m apfs exec -- sh -c "cat /sys/bus/ap/bindings; id -u"'
        assert sh(script, sys.executable).stdout == "12/12 (complete)\n0\n"


def test_programs_for_root() -> None:
    """Ordinary users are root inside, but have no such directory in PATH; modprobe is there in any case."""
    apfs = 'PATH=/usr/bin:/bin "$1" -m apfs exec'
    assert sh(f"{apfs} ldconfig --version", sys.executable).stdout.startswith("ldconfig ")
    assert sh(f"{apfs} -- sh -c 'ldconfig --version'", sys.executable).stdout.startswith("ldconfig ")
    sh(f"{apfs} modprobe vfio_ap", sys.executable)
    assert sh(f"{apfs} --keep-id ldconfig", sys.executable, status=127).stderr == "apfs: ldconfig: command not found\n"


def test_firmware_of_both_machines() -> None:
    real = {path.name for path in Path("/sys/firmware").iterdir()} if Path("/sys/firmware").exists() else set[str]()
    result = inside("cat /sys/firmware/uv/prot_virt_host; ls -A /sys/firmware")
    assert result.stdout.split()[0] == "1"
    assert set(result.stdout.split()[1:]) == real | {"uv"}


def test_debug_areas_are_beside_those_of_the_real_machine() -> None:
    debugfs = Path("/sys/kernel/debug")
    real = {path.name for path in debugfs.iterdir()} if os.access(debugfs, os.R_OK) else set[str]()
    result = inside("cat /sys/kernel/debug/s390dbf/vfio_ap/level; ls -A /sys/kernel/debug")
    assert result.stdout.split()[0] == "4"
    assert set(result.stdout.split()[1:]) == real | {"s390dbf"}
