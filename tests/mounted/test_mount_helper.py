"""mount(8), umount(8), findmnt(8) and fstab(5) with the type fuse.apfs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apfs.cli.mount_helper import GENERIC, KERNEL, OptionError, parse
from tests.conftest import TIMEOUT, let_in, sh

if TYPE_CHECKING:
    from collections.abc import Callable

    Mount8 = Callable[..., subprocess.CompletedProcess[str]]

NOBODY = 65534
ORDINARY_USER = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all"
BIN = Path(sys.executable).parent

# -- options, without a mount ----------------------------------------------------------------------


def test_options_of_apfs() -> None:
    options = parse("rw,scenario=empty,clock=manual,allow_other")
    assert options.scenario == "empty"
    assert options.server == ["--clock", "manual", "--allow-other"]
    assert parse("noallow_other").server == ["--no-allow-other"]


def test_value_with_a_comma_is_quoted() -> None:
    assert parse('ro,scenario="/a,b.toml",noatime').scenario == "/a,b.toml"


@pytest.mark.parametrize(
    "text",
    ["", "rw,dev,suid", "defaults,noauto,nofail,_netdev,user=me", "x-systemd.automount,X-mount.mkdir,comment=a b"],
)
def test_generic_options_change_nothing(text: str) -> None:
    assert parse(text) == parse("")


@pytest.mark.parametrize("text", ["uid=5", "scenarios=a", "ro=1", "allow-other", "x"])
def test_unknown_option_is_named(text: str) -> None:
    with pytest.raises(OptionError, match=f"unknown option '{text}'"):
        parse(f"rw,{text},ro")
    assert parse(f"rw,{text},ro", sloppy=True) == parse("ro")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("clock=fast", "clock=fast: expected"),
        ("scenario=", "scenario=: expected"),
        ("remount", "unmount and mount"),
        ("rw,nosuid,nodev,user_id=0,group_id=0,remount", "unmount and mount"),  # as Debian 13 has it
    ],
)
@pytest.mark.parametrize("sloppy", [False, True])
def test_known_option_without_sense_is_refused(text: str, reason: str, *, sloppy: bool) -> None:
    with pytest.raises(OptionError, match=reason):
        parse(text, sloppy=sloppy)


@example(["ro", "rw"])
@example(["rw", "ro"])
@given(st.lists(st.sampled_from([*KERNEL, *filter(None, KERNEL.values()), *GENERIC])))
def test_last_of_a_pair_counts(words: list[str]) -> None:
    expected = {
        option
        for option, opposite in KERNEL.items()
        if option in words and opposite not in words[len(words) - words[::-1].index(option) :]
    }
    assert parse(",".join(words)).kernel == expected


# -- mount(8) --------------------------------------------------------------------------------------


@pytest.fixture
def mount8(tmp_path: Path) -> Mount8:
    """Return a function that runs a script where mount(8) finds the helper, or `apfs` in its PATH instead.

    In a mount namespace of its own, so that nothing is changed on this machine and nothing stays mounted. In the script
    $Z is a mount point, and $USER runs a command as an ordinary user; `fstab` is the text of /etc/fstab.
    """
    if os.geteuid():
        pytest.skip("putting a helper into /sbin needs root")

    def run(script: str, *, helper: bool = True, fstab: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        for name in ("sbin", "bin", "z"):
            (tmp_path / name).mkdir(exist_ok=True)
        if helper:
            (tmp_path / "sbin/mount.fuse.apfs").symlink_to(BIN / "mount.fuse.apfs")
        else:
            (tmp_path / "sbin/mount.fuse").write_bytes(Path("/sbin/mount.fuse3").read_bytes())
            (tmp_path / "sbin/mount.fuse").chmod(0o755)
            (tmp_path / "bin/apfs").symlink_to(BIN / "apfs")
        let_in(tmp_path)
        (tmp_path / "fstab").write_text(fstab.replace("$Z", f"{tmp_path}/z"))
        setup = f"""
            set -e
            # A server keeps the namespace that it was started in, and so its mount, for ever.
            trap 'umount -a -t fuse.apfs || :' EXIT
            cd {tmp_path}
            Z={tmp_path}/z USER='{ORDINARY_USER}'
            mknod -m 0666 fuse c 10 229
            mount --bind fuse /dev/fuse
            mount --bind sbin /usr/sbin
            mount --bind bin /usr/local/bin
            mount --bind fstab /etc/fstab
        """
        command = ["unshare", "--mount", "bash", "-c", f"{setup}\n{script}"]
        env = {**os.environ, "LC_ALL": "C"}
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT, env=env)
        assert result.returncode == status, result
        return result

    return run


FINDMNT = "findmnt -n -o SOURCE,FSTYPE $Z"


@pytest.mark.parametrize("helper", [True, False], ids=["helper", "mount.fuse3"])
def test_mount_and_umount(mount8: Mount8, *, helper: bool) -> None:
    script = f"mount -t fuse.apfs default $Z; {FINDMNT}; cat $Z/sys/bus/ap/bindings; umount $Z; ! findmnt $Z"
    result = mount8(script, helper=helper)
    assert result.stdout == "default fuse.apfs\n12/12 (complete)\n"
    assert result.stderr == ""


@pytest.mark.parametrize("helper", [True, False], ids=["helper", "mount.fuse3"])
@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ("-o uid=5 none $Z", 1, "unknown option 'uid=5'"),
        ("-o clock=fast none $Z", 1, "clock=real or clock=manual"),
        ("nosuch $Z", 32, "no scenario of that name: there are default,"),
        ("./no.toml $Z", 32, "No such file"),
        ("none $Z/nowhere", 32, "mkdir -p"),
        ("none fstab", 32, "is not a directory"),
    ],
)
def test_refusals(mount8: Mount8, arguments: str, status: int, reason: str, *, helper: bool) -> None:
    result = mount8(f"mount -t fuse.apfs {arguments}", helper=helper, status=status)
    assert result.stderr.startswith("mount.fuse.apfs: ")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


def test_second_mount_and_remount_are_refused(mount8: Mount8) -> None:
    result = mount8(
        "mount -t fuse.apfs none $Z; mount -t fuse.apfs none $Z || echo $?; mount -o remount,ro $Z || echo $?"
    )
    assert result.stdout == "32\n1\n"
    assert "already has an apfs mounted" in result.stderr
    assert "remount is not possible: unmount and mount again" in result.stderr


def test_wrong_usage() -> None:
    result = sh('"$1"', str(BIN / "mount.fuse.apfs"), status=1)
    assert result.stderr.startswith("Usage: mount.fuse.apfs ")
    assert "nsenter" in sh('"$1" none /mnt -N /proc/1/ns/mnt', str(BIN / "mount.fuse.apfs"), status=1).stderr


def test_without_dev_fuse_status_is_that_of_a_system_error(mount8: Mount8) -> None:
    result = mount8('mount -t tmpfs none /dev; mount -t fuse.apfs none "$Z"', status=2)
    assert "there is no /dev/fuse" in result.stderr


def test_read_only_host(mount8: Mount8) -> None:
    script = """
        mount -t fuse.apfs -o ro,noatime,scenario=kernel-doc label $Z
        findmnt -n -o SOURCE,OPTIONS $Z
        echo scan > $Z/ctl/console || echo 1 > $Z/sys/bus/ap/apmask
    """
    result = mount8(script, status=1)
    source, options = result.stdout.split()
    assert source == "label"
    assert {"ro", "noatime", "nosuid", "nodev"} <= set(options.split(","))
    assert result.stderr.count("Read-only file system") == 2


def test_file_as_source(mount8: Mount8) -> None:
    script = """
        "$APFS" scenario show empty > 'a b,c.toml'
        mount -t fuse.apfs 'a b,c.toml' $Z
        findmnt -n -o SOURCE $Z
        cat $Z/sys/bus/ap/bindings
    """
    result = mount8(f"APFS={BIN}/apfs\n{script}")
    assert result.stdout.endswith("/a b,c.toml\n0/0 (complete)\n")


FSTAB = """\
# a host by its mount point, with the options that a fstab line may have besides
default $Z fuse.apfs clock=manual,nofail,_netdev,x-systemd.automount,comment=host 0 0
"""


def test_fstab(mount8: Mount8) -> None:
    script = f"""
        mount $Z; {FINDMNT}
        mount -a -v
        umount $Z
        mount -a -v; {FINDMNT}
        umount $Z
        ! findmnt $Z
        mount -f -v $Z; ! findmnt $Z
    """
    result = mount8(script, fstab=FSTAB)
    lines = [" ".join(line.split()).replace(" :", ":") for line in result.stdout.splitlines()]
    z = lines[1].partition(":")[0]
    assert lines == [
        "default fuse.apfs",
        f"{z}: already mounted",
        f"mount.fuse.apfs: default mounted on {z}",
        f"{z}: successfully mounted",
        "default fuse.apfs",
        f"mount.fuse.apfs: default would be mounted on {z}",
    ]


def test_mounted_is_mounted_even_if_it_cannot_be_told(mount8: Mount8) -> None:
    result = mount8('/sbin/mount.fuse.apfs default "$Z" -v > /dev/full; echo $?; umount "$Z"')
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_ordinary_user(mount8: Mount8) -> None:
    """`user` in fstab lets a user mount who may write to the mount point, and unmount what is theirs."""
    probe = sh(f'{ORDINARY_USER} "$1" -c "import apfs, pyfuse3"', sys.executable, status=None)
    if probe.returncode:
        pytest.skip(f"an ordinary user cannot read this checkout or its interpreter: {probe.stderr.strip()}")
    script = f"""
        $USER mount $Z || echo $?
        chown {NOBODY} $Z
        $USER mount $Z
        findmnt -n -o OPTIONS $Z
        $USER cat $Z/sys/bus/ap/bindings
        setpriv --reuid 65533 --clear-groups umount $Z || echo $?
        $USER umount $Z
        ! findmnt $Z
    """
    result = mount8(script, fstab="default $Z fuse.apfs noauto,user 0 0\n")
    refused, options, bindings, foreign = result.stdout.splitlines()
    assert refused == "32"
    assert "users other than root mount only on directories that they may write in" in result.stderr
    assert {"nosuid", "nodev", "noexec", f"user_id={NOBODY}"} <= set(options.split(","))
    assert bindings == "12/12 (complete)"
    assert foreign == "32"
