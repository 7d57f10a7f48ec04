"""Everyday tools on a real mount, with their whole output."""

from __future__ import annotations

import json
import os
import select
import subprocess
from typing import TYPE_CHECKING

from tests.conftest import UUID, create_mdev, sh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Mounter = Callable[..., Path]

ASSIGN = """
    cd "$1"
    echo -5,-6 > sys/bus/ap/apmask
    echo {uuid} > sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create
    cd sys/devices/vfio_ap/matrix/{uuid}
    echo 5 > assign_adapter
    printf 0x06 >> assign_adapter
    echo 4 | tee assign_domain > tee.out.$$ 2>/dev/null || true
    echo 4 | dd of=assign_domain conv=notrunc status=none
    echo 0xab > assign_domain
    echo 0xab > assign_control_domain
""".replace("{uuid}", UUID)


def test_shell_session(mount: Mounter) -> None:
    host = mount()
    result = sh(ASSIGN + "cat matrix guest_matrix control_domains ap_config; wc -c < ap_config", str(host))
    assert "Permission denied" in result.stderr  # a file cannot be made in sysfs
    assert result.stdout.splitlines() == [
        "05.0004", "05.00ab", "06.0004", "06.00ab",
        "05.0004", "05.00ab", "06.0004", "06.00ab",
        "00ab",
        ("0x0600000000000000000000000000000000000000000000000000000000000000,"
        "0x0800000000000000000000000000000000000000001000000000000000000000,"
        "0x0000000000000000000000000000000000000000001000000000000000000000"),
        "201",
    ]  # fmt: skip


def test_error_texts_of_the_shell(mount: Mounter) -> None:
    host = mount()
    mdev = create_mdev(host)
    (mdev / "assign_adapter").write_text("5")
    script = 'for text in 4 256 x; do echo $text > "$1/assign_domain"; done; cat "$1/assign_domain"'
    errors = [line.rsplit(": ", 1)[1] for line in sh(script, str(mdev), status=1).stderr.splitlines()]
    assert errors == [
        "Cannot assign requested address",
        "No such device",
        "Invalid argument",
        "Permission denied",
    ]
    refusals = [json.loads(line) for line in (host / "ctl/journal").read_text().splitlines()]
    reasons = [entry["why"] for entry in refusals if entry["type"] == "refusal"]
    # Linux itself applies modes to users other than root, and does not ask the server.
    assert len(reasons) == (3 if os.geteuid() else 4)
    assert "05.0004 is reserved for the host" in reasons[0]


def test_find_ls_tar_and_grep_walk_the_whole_tree(mount: Mounter) -> None:
    host = mount()
    create_mdev(host)
    found = sh('cd "$1" && find . -type f | wc -l && find . -type l | wc -l', str(host)).stdout.split()
    listed = sh('ls -lR "$1"', str(host)).stdout.splitlines()
    assert int(found[0]) == sum(line.startswith("-") for line in listed)
    assert int(found[1]) == sum(line.startswith("l") for line in listed)
    assert sh('find "$1/sys" -xtype l', str(host)).stdout == ""  # no link leads nowhere
    # What cannot be read is refused, everything else can be read.
    unreadable = sh('cd "$1/sys" && find . -type f ! -perm /444 | sort', str(host)).stdout.splitlines()
    grep = sh('cd "$1/sys" && grep -r nosuchtext .', str(host), status=2)
    refused = sorted(line.split(": ")[1] for line in grep.stderr.splitlines() if "Permission denied" in line)
    assert refused == unreadable
    others = [line for line in grep.stderr.splitlines() if "Permission denied" not in line]
    assert sorted(line.split(": ")[1] for line in others) == ["./class/zcrypt/create", "./class/zcrypt/destroy"]


def test_copying_the_tree(mount: Mounter, tmp_path: Path) -> None:
    host = mount()
    sh('cp -r "$1/sys/devices/ap/card05" "$2"', str(host), str(tmp_path))
    assert (tmp_path / "card05/type").read_text() == "CEX8C\n"
    assert (tmp_path / "card05/05.0004/config").read_text() == "1\n"
    assert (tmp_path / "card05/05.0004/driver").is_symlink()


def test_tar_pads_files_that_are_shorter_than_they_say(mount: Mounter, tmp_path: Path) -> None:
    """As with sysfs: st_size is 4096, so tar complains and fills up with zeros."""
    host = mount()
    archive = tmp_path / "card.tar"
    result = sh('tar -C "$1/sys/devices/ap" -cf "$2" card05', str(host), str(archive), status=1)
    assert "File shrank by 4090 bytes; padding with zeros" in result.stderr
    sh('tar -C "$2" -xf "$1"', str(archive), str(tmp_path))
    assert (tmp_path / "card05/type").read_bytes().rstrip(b"\0") == b"CEX8C\n"


def test_sed_in_place_fails_as_on_sysfs(mount: Mounter) -> None:
    path = mount() / "sys/bus/ap/apmask"
    before = path.read_text()
    result = sh('sed -i s/f/0/ "$1"', str(path), status=4)
    assert "Permission denied" in result.stderr
    assert path.read_text() == before


def test_kmsg_uevents_and_journal(mount: Mounter) -> None:
    host = mount()
    create_mdev(host)
    assert f"vfio_ap_mdev {UUID}: Adding to iommu group 0\n" in (host / "ctl/kmsg").read_text()
    events = (host / "ctl/uevents").read_text().split("\n\n")
    assert events[0].splitlines() == [
        f"add@/devices/vfio_ap/matrix/{UUID}",
        "ACTION=add",
        f"DEVPATH=/devices/vfio_ap/matrix/{UUID}",
        "SUBSYSTEM=mdev",
        "SEQNUM=1",
    ]
    (host / "ctl/console").write_text("help")
    assert "console: plug ADAPTER TYPE" in (host / "ctl/kmsg").read_text()
    types = [json.loads(line)["type"] for line in (host / "ctl/journal").read_text().splitlines()]
    assert types[:5] == ["uevent", "uevent", "uevent", "log", "uevent"]
    assert json.loads((host / "ctl/status").read_text())["mdevs"][UUID]["guest"] is False


def test_following_the_journal(mount: Mounter) -> None:
    """A reader of ctl/uevents is woken when something happens, and reads only what is new."""
    host = mount()
    with (host / "ctl/uevents").open("rb", buffering=0) as events:
        assert events.read() == b""
        poller = select.poll()
        poller.register(events, select.POLLIN)
        assert poller.poll(0) == []
        with subprocess.Popen(["sh", "-c", 'echo change > "$1"', "sh", host / "sys/devices/ap/uevent"]):
            assert poller.poll(30_000) == [(events.fileno(), select.POLLIN)]
        assert events.read().startswith(b"change@/devices/ap\n")
        assert poller.poll(0) == []
