"""Live migration between real mounts: by redirection, by `apfs migrate`, and with streams that are refused."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import pytest

from apfs.scenario.reader import gallery
from tests.conftest import UUID, apfs, create_mdev, sh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Mounter = Callable[..., Path]

INCOMPATIBLE = {
    "target-older-type": ("EFAULT", "05.0004", "AP type"),
    "target-other-mode": ("EFAULT", "05.0004", "CCA coprocessor mode"),
    "target-accelerator": ("EFAULT", "05.0004", "accelerator mode"),
    "target-stateless": ("EFAULT", "05.0004", "card class"),
    "target-filtering": ("EFAULT", "05.0004", "stateless command filtering (SLCF)"),
    "target-missing-facilities": ("EFAULT", "05.0004", "extended addressing (APXA) facility"),
    "target-fewer-queues": ("EIO", None, "number of queues"),
    "target-more-queues": ("ENODEV", None, "number of queues"),
    "target-other-queues": ("ENODEV", "05.0047", "queue"),
}


def client(host: Path) -> Path:
    return host / "dev/vfio-ap" / UUID


def test_by_redirection(mount: Mounter) -> None:
    source, target = mount("migration-source"), mount("migration-target")
    script = """
        set -e
        echo RESUMING > "$2/migration_state"
        echo 3 > "$1/migration_state"
        test "$(cat "$1/data_size")" = 72
        cat "$1/data_stream" > "$2/data_stream"
        echo RUNNING > "$2/migration_state"
        echo 0 > "$1/guest"
        cat "$1/guest" "$2/guest" "$2/migration_state" "$2/migration_flags"
    """
    output = sh(script, str(client(source)), str(client(target))).stdout
    assert output.split() == ["0", "1", "RUNNING", "STOP_COPY"]


@pytest.mark.parametrize("block", [1, 3, 7, 16, 72])
def test_any_chunking(mount: Mounter, block: int) -> None:
    source, target = mount("migration-source"), mount("migration-target")
    (client(target) / "migration_state").write_text("RESUMING")
    (client(source) / "migration_state").write_text("STOP_COPY")
    sh('dd if="$1/data_stream" of="$2/data_stream" bs="$3" status=none',
       str(client(source)), str(client(target)), str(block))  # fmt: skip
    (client(target) / "migration_state").write_text("RUNNING")
    assert (target / "ctl/kmsg").read_text() == ""


def test_stream_has_one_position_and_cannot_seek(mount: Mounter) -> None:
    source = mount("migration-source")
    (client(source) / "migration_state").write_text("STOP_COPY")
    with (
        (client(source) / "data_stream").open("rb", buffering=0) as first,
        (client(source) / "data_stream").open("rb", buffering=0) as second,
    ):
        assert first.read(8) == b"\0\0\0\4\0\0\0\0"
        assert second.read(8) == bytes.fromhex("928000000e540307")
        with pytest.raises(OSError, match=os.strerror(errno.ESPIPE)):
            first.seek(0)
        with pytest.raises(OSError, match=os.strerror(errno.ESPIPE)):
            os.pread(first.fileno(), 8, 0)
        (client(source) / "migration_state").write_text("STOP")
        with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
            first.read(8)


def splice(source: int, target: int, size: int) -> int:
    return os.splice(source, target, size)


def sendfile(source: int, target: int, size: int) -> int:
    return os.sendfile(target, source, None, size)


def drained(fd: int, move: Callable[[int, int, int], int], size: int = 1 << 16) -> bytes:
    """Return what a file gives to splice or sendfile until there is no more."""
    out, into = os.pipe()
    data = b""
    while count := move(fd, into, size):
        data += os.read(out, count)
    os.close(out)
    os.close(into)
    return data


@pytest.mark.parametrize("move", [splice, sendfile])
def test_splicing_gives_the_stream(mount: Mounter, move: Callable[[int, int, int], int]) -> None:
    """Linux refuses it. Since 6.5 it reads by pages, and from a file without a size nothing at all."""
    source = client(mount("migration-source"))
    path = source / "data_stream"
    (source / "migration_state").write_text("STOP_COPY")
    stream = path.read_bytes()
    assert len(stream) == 72
    for before in (0, 8, 71, 72):
        (source / "migration_state").write_text("STOP")
        assert path.stat().st_size == 0
        (source / "migration_state").write_text("STOP_COPY")
        assert path.stat().st_size == 72
        fd = os.open(path, os.O_RDONLY)
        assert os.read(fd, before) == stream[:before]
        start = before
        if before == 8:
            out, into = os.pipe()
            assert move(fd, into, 10) == 10
            assert os.read(out, 10) == stream[8:18]
            assert os.read(fd, 2) == stream[18:20]  # where splicing ended
            start = 20
            os.close(out)
            os.close(into)
        assert drained(fd, move) == stream[start:]
        assert os.read(fd, 100) == b""
        os.close(fd)
        fd = os.open(path, os.O_RDONLY)
        assert drained(fd, move) == b""  # the session's position is the end
        os.close(fd)


def test_splicing_a_long_stream(mount: Mounter) -> None:
    host = mount("largest")
    (host / "sys/bus/ap/apmask").write_text("0x0")
    types = host / "sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough"
    (types / "create").write_text(UUID)
    masks = ",".join(["0x" + "f" * 64] * 2 + ["0x0"])
    (host / "sys/devices/vfio_ap/matrix" / UUID / "ap_config").write_text(masks)
    source = client(host)
    (source / "guest").write_text("1")
    (source / "migration_state").write_text("STOP_COPY")
    fd = os.open(source / "data_stream", os.O_RDONLY)
    spliced = drained(fd, splice)
    os.close(fd)
    (source / "migration_state").write_text("STOP")
    (source / "migration_state").write_text("STOP_COPY")
    assert spliced == (source / "data_stream").read_bytes()
    assert len(spliced) == 8 + 16 * 65536


def test_a_transfer_file_has_no_fsync(mount: Mounter) -> None:
    """vfs_fsync_range: EINVAL without an operation; sysfs has one that does nothing."""
    host = mount("migration-source")
    (client(host) / "migration_state").write_text("STOP_COPY")
    for path, expected in (("data_stream", errno.EINVAL), ("guest", 0)):
        fd = os.open(client(host) / path, os.O_RDONLY)
        if expected:
            with pytest.raises(OSError, match=os.strerror(expected)):
                os.fsync(fd)
            record = json.loads((host / "ctl/journal").read_text().splitlines()[-1])
            assert (record["operation"], record["errno"]) == ("fsync", "EINVAL")
        else:
            os.fsync(fd)
        os.close(fd)


def test_no_stream_outside_a_session(mount: Mounter) -> None:
    source = mount("migration-source")
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        (client(source) / "data_stream").read_bytes()
    refusal = json.loads((source / "ctl/journal").read_text().splitlines()[-1])
    assert "set STOP_COPY to read" in refusal["why"]


@pytest.mark.parametrize("scenario", ["migration-target", "target-newer-type"])
def test_migrate_command(mount: Mounter, scenario: str) -> None:
    source, target = mount("migration-source"), mount(scenario)
    assert "compatible" in apfs("migrate", "--check", str(source), str(target), UUID).stdout
    assert (client(source) / "guest").read_text() == "1\n"
    report = json.loads(apfs("migrate", "--json", str(source), str(target), UUID.upper()).stdout)
    assert report == {"uuid": UUID, "ok": True, "stream": 72, "error": None, "log": []}
    assert [(client(host) / "guest").read_text() for host in (source, target)] == ["0\n", "1\n"]


@pytest.mark.parametrize("scenario", INCOMPATIBLE)
def test_incompatible_targets(mount: Mounter, scenario: str) -> None:
    """What --check says beforehand is what the target's driver says afterwards, and the guest runs on."""
    number, queue, characteristic = INCOMPATIBLE[scenario]
    source, target = mount("migration-source"), mount(scenario)
    before = (target / "ctl/status").read_text()
    check = json.loads(apfs("migrate", "--check", "--json", str(source), str(target), UUID, status=1).stdout)
    assert (check["compatible"], check["errno"]) == (False, number)
    assert (queue, characteristic) in [(found["queue"], found["characteristic"]) for found in check["findings"]]
    assert (target / "ctl/status").read_text() == before
    assert (target / "ctl/journal").read_text() == ""
    report = json.loads(apfs("migrate", "--json", str(source), str(target), UUID, status=1).stdout)
    assert report["error"].startswith(os.strerror(getattr(errno, number)))
    assert report["log"]
    assert (client(source) / "migration_state").read_text() == "RUNNING\n"
    assert (source / "sys/devices/ap/card05/05.0004/status").read_text() == "in use\n"
    assert (target / "ctl/status").read_text() == before


def test_check_prints_a_table(mount: Mounter) -> None:
    source, target = mount("migration-source"), mount("target-stateless")
    lines = apfs("migrate", "--check", str(source), str(target), UUID, status=1).stdout.splitlines()
    assert lines[0].split() == ["queue", "characteristic", "source", "target"]
    assert [line.split()[0] for line in lines[1:3]] == ["05.0004", "05.0047"]
    assert "EFAULT" in lines[-1]


# -- other revisions --------------------------------------------------------------------------------------------------

HAS = {"adapters": [5, 6], "domains": [4, 0x47], "control_domains": [4, 0x47]}
NOTHING: dict[str, list[int]] = {"adapters": [], "domains": [], "control_domains": []}


def of_revision(mount: Mounter, place: Path, driver: str, name: str, *, empty: bool = False) -> Path:
    """Mount a host of the gallery whose driver has a revision; `empty` leaves its device without anything."""
    text = gallery()[name].replace("\n", f'\ndriver = "{driver}"\n', 1)
    if empty:
        lines = text.splitlines()
        at = lines.index("[[mdev]]")
        text = "\n".join([*lines[:at], *(line for line in lines[at:] if not line.endswith("]") or "[[" in line)])
    file = place / f"{driver}-{name}.toml"
    file.write_text(text)
    return mount(str(file))


@pytest.mark.parametrize(("driver", "size"), [("v4", 80), ("next", 112)])
def test_target_is_given_what_the_source_has(mount: Mounter, tmp_path: Path, driver: str, size: int) -> None:
    source = of_revision(mount, tmp_path, driver, "migration-source")
    target = of_revision(mount, tmp_path, driver, "migration-target", empty=True)
    before = (target / "ctl/status").read_text()
    given = HAS if driver == "next" else HAS | {"control_domains": []}
    check = json.loads(apfs("migrate", "--check", "--json", str(source), str(target), UUID).stdout)
    assert check == {
        "uuid": UUID,
        "compatible": True,
        "errno": None,
        "findings": [],
        "drivers": {"source": driver, "target": driver},
        "judged": True,
        "matrix": given,
        "guest_matrix": given,
    }
    assert (target / "ctl/status").read_text() == before
    assert (target / "ctl/journal").read_text() == ""
    lines = apfs("migrate", "--check", str(source), str(target), UUID).stdout.splitlines()
    control = "0004 0047" if driver == "next" else "none"
    expected = f"  the device would have adapters: 05-06, domains: 0004 0047, control domains: {control}"
    assert lines == [f"{UUID}: compatible", expected]
    assert apfs("migrate", str(source), str(target), UUID).stdout == f"{UUID}: migrated, {size} bytes\n"
    assert json.loads((target / "ctl/status").read_text())["mdevs"][UUID]["guest_matrix"] == given
    assert (target / "sys/devices/ap/card05/05.0004/status").read_text() == "in use\n"
    assert f"vfio_ap {driver}," in apfs("status", str(target)).stdout


def test_what_the_guest_would_not_get_of_it(mount: Mounter, tmp_path: Path) -> None:
    source = of_revision(mount, tmp_path, "next", "migration-source")
    target = of_revision(mount, tmp_path, "next", "migration-target", empty=True)
    (source / "sys/devices/vfio_ap/matrix" / UUID / "unassign_domain").write_text("0x47")
    (target / "ctl/console").write_text("fail-reset 06.0004 255")
    (target / "dev/vfio-ap" / UUID / "guest").write_text("0")
    (target / "sys/devices/vfio_ap/matrix" / UUID / "assign_adapter").write_text("6")
    (target / "sys/devices/vfio_ap/matrix" / UUID / "assign_domain").write_text("4")
    (target / "sys/devices/vfio_ap/matrix" / UUID / "unassign_adapter").write_text("6")
    lines = apfs("migrate", "--check", str(source), str(target), UUID).stdout.splitlines()
    assert lines[1:] == [
        "  the device would have adapters: 05-06, domains: 0004, control domains: 0004 0047",
        "  its guest would have adapters: 05, domains: 0004, control domains: 0004 0047",
    ]
    apfs("migrate", str(source), str(target), UUID)
    assert (target / "sys/devices/vfio_ap/matrix" / UUID / "guest_matrix").read_text() == "05.0004\n"


@pytest.mark.parametrize(
    ("source", "target", "number"),
    [
        ("none", "v2", "ENOTTY"),
        ("next", "none", "ENOTTY"),
        ("v2", "next", "EINVAL"),
        ("v4", "next", "EIO"),
        ("next", "v4", "EINVAL"),
        ("next", "v2", "EIO"),
        ("v4", "v2", "EIO"),
    ],
)
def test_between_revisions(mount: Mounter, tmp_path: Path, source: str, target: str, number: str) -> None:
    hosts = [
        of_revision(mount, tmp_path, driver, f"migration-{side}")
        for driver, side in ((source, "source"), (target, "target"))
    ]
    here, there = map(str, hosts)
    check = json.loads(apfs("migrate", "--check", "--json", here, there, UUID, status=1).stdout)
    assert (check["compatible"], check["errno"], check["matrix"]) == (False, number, None)
    assert check["drivers"] == {"source": source, "target": target}
    assert check["findings"]
    assert number in apfs("migrate", "--check", here, there, UUID, status=1).stdout
    report = json.loads(apfs("migrate", "--json", here, there, UUID, status=1).stdout)
    assert report["error"].startswith(os.strerror(getattr(errno, number)))
    assert (client(hosts[0]) / "guest").read_text() == "1\n"


def test_stream_that_a_target_takes_and_forgets(mount: Mounter, tmp_path: Path) -> None:
    source = mount("migration-source")
    target = of_revision(mount, tmp_path, "v4", "migration-target", empty=True)
    output = apfs("migrate", "--check", str(source), str(target), UUID, status=1).stdout
    assert output.splitlines()[-1] == (
        f"{UUID}: not compatible, the target (v4) would accept the stream (v2) without effect"
    )
    check = json.loads(apfs("migrate", "--check", "--json", str(source), str(target), UUID, status=1).stdout)
    assert (check["compatible"], check["errno"], check["judged"]) == (False, None, False)
    # So does the driver: a VMM does not hear of it.
    assert apfs("migrate", str(source), str(target), UUID).stdout == f"{UUID}: migrated, 72 bytes\n"
    assert json.loads((target / "ctl/status").read_text())["mdevs"][UUID]["matrix"] == NOTHING


def test_checks_by_a_shell(mount: Mounter) -> None:
    source, target = mount("migration-source"), mount("target-older-type")
    script = 'exec 3<> "$2/check" && cat "$1/stream" >&3 && cat <&3'
    answer = json.loads(sh(script, *(str(host / "ctl/migration" / UUID) for host in (source, target))).stdout)
    assert (answer["errno"], answer["judged"], answer["matrix"]) == ("EFAULT", True, None)
    assert answer["findings"][0] == {
        "queue": "05.0004",
        "characteristic": "AP type",
        "source": "0e",
        "target": "0d",
    }


def test_host_without_live_migration(mount: Mounter, tmp_path: Path) -> None:
    host = of_revision(mount, tmp_path, "none", "migration-source")
    assert (host / "sys/devices/vfio_ap/matrix/features").read_text() == "guest_matrix hotplug ap_config\n"
    for name in ("migration_state", "migration_flags", "data_size", "data_stream"):
        with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
            (client(host) / name).read_text()
    output = apfs("status", str(host)).stdout
    assert "vfio_ap without live migration," in output
    assert output.split("migration\n")[1].splitlines()[0].split()[-1] == "-"


def test_files_that_cannot_be_read_or_written_are_named(mount: Mounter, tmp_path: Path) -> None:
    source = of_revision(mount, tmp_path, "v4", "migration-source")
    target = of_revision(mount, tmp_path, "v4", "migration-target")
    (source / "ctl/console").write_text("unplug 6")  # which the bus does not know yet
    said = apfs("migrate", str(source), str(target), UUID, status=1).stdout
    assert f"No such device ({client(source)}/data_stream); the guest keeps running on the source" in said
    check = target / "ctl/migration" / UUID / "check"
    check.chmod(0)
    said = apfs("migrate", "--check", str(source), str(target), UUID, status=2).stderr
    assert said == f"apfs: {check}: Permission denied\n"


def test_only_some_devices_are_named_for_one_that_is_not_there(mount: Mounter) -> None:
    host, uuids = mount(), [f"{number:08x}-0000-4000-8000-000000000000" for number in range(8)]
    for uuid in uuids:
        create_mdev(host, uuid)
    said = apfs("migrate", str(host), str(host), UUID, status=2).stderr
    assert f"(it has {', '.join(uuids[:5])}, 3 more)" in said


def test_usage_errors_of_migrate(mount: Mounter, tmp_path: Path) -> None:
    source, target = mount("migration-source"), mount()
    assert "not an apfs mount" in apfs("migrate", str(tmp_path), str(target), UUID, status=2).stderr
    said = apfs("migrate", str(source), str(target), UUID, status=2).stderr
    assert f"{target} has no mediated device {UUID} (it has none): source and target need one with the same" in said
    said = apfs("migrate", str(source), str(target), UUID[::-1], status=2).stderr
    assert f"{source} has no mediated device {UUID[::-1]} (it has {UUID}): source and target need one" in said
    idle = mount("migration-target")
    (client(idle) / "guest").write_text("0")
    assert "no guest running" in apfs("migrate", str(idle), str(source), UUID, status=2).stderr


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_one_host_is_not_two(mount: Mounter, options: list[str]) -> None:
    host = str(mount("migration-source"))
    assert "same host" in apfs("migrate", *options, host, host, UUID, status=2).stderr


def test_a_session_that_somebody_left_does_not_matter(mount: Mounter) -> None:
    source, target = mount("migration-source"), mount("migration-target")
    (client(target) / "migration_state").write_text("RESUMING")
    (client(target) / "data_stream").write_bytes(b"\2")
    assert apfs("migrate", str(source), str(target), UUID).stdout == f"{UUID}: migrated, 72 bytes\n"


def test_secure_execution_host_refuses(mount: Mounter, tmp_path: Path) -> None:
    scenario = tmp_path / "se.toml"
    scenario.write_text(f'secure_execution = true\n[[mdev]]\nuuid = "{UUID}"\nguest = true\n')
    host = mount(str(scenario))
    with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
        (client(host) / "migration_state").write_text("STOP")
    assert "secure execution" in (host / "ctl/kmsg").read_text()


def test_largest_stream(mount: Mounter) -> None:
    """65,536 queues: the 1 MiB stream is made, moved and accepted."""
    hosts = [mount("largest"), mount("largest")]
    full = "0x" + "f" * 64
    for host in hosts:
        (host / "sys/bus/ap/apmask").write_text("0x0")
        matrix = host / "sys/devices/vfio_ap/matrix"
        (matrix / "mdev_supported_types/vfio_ap-passthrough/create").write_text(UUID)
        (matrix / UUID / "ap_config").write_text(f"{full},{full},{full}\n")
    (client(hosts[0]) / "guest").write_text("1")
    report = json.loads(apfs("migrate", "--json", str(hosts[0]), str(hosts[1]), UUID).stdout)
    assert report["stream"] == 1048584
