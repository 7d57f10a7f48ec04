"""Tests of an imagined user, copied into a project and run there: everything that the fixtures offer."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apfs.errors import KernelError
from apfs.journal.records import Refusal, Verb
from apfs.mounts.table import MountsError

if TYPE_CHECKING:
    from apfs.testing.files import Files, Shell
    from apfs.testing.mounted import MountedHost, Pair

UUID = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"
MATRIX = "/sys/devices/vfio_ap/matrix"
CREATE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create"
ONE_CARD = """
[qci]
domains = [1]
[[card]]
adapter = 3
type = "CEX7C"
"""
CARDS = {"default": 3, "largest": 256, ONE_CARD: 1}


@pytest.fixture(params=["apfs_host", "apfs_mount"])
def host(request: pytest.FixtureRequest) -> Files:
    found: Files = request.getfixturevalue(request.param)
    return found


def test_files(host: Files) -> None:
    assert host.read("/sys/bus/ap/bindings") == b"12/12 (complete)\n"
    assert host.write("/sys/bus/ap/apmask", "-5\n") == host.echo("-6", "/sys/bus/ap/apmask") == 3
    assert host.cat("/sys/bus/ap/apmask").startswith("0xf9")
    assert {"05.0004", "05.0047", "hwtype"} <= set(host.ls("/sys/devices/ap/card05"))
    assert host.readlink("/sys/devices/ap/card05/05.0047/driver") == "../../../../bus/ap/drivers/vfio_ap"
    assert host.exists("/sys/bus/ap/devices/05.0047/driver/bind")
    assert not host.exists("/sys/devices/ap/card07")


def test_journal(host: Files) -> None:
    host.echo("-5", "/sys/bus/ap/apmask")
    with pytest.raises((KernelError, OSError)) as caught:
        host.echo("+256", "/sys/bus/ap/apmask")
    assert isinstance(caught.value, KernelError | OSError)
    assert caught.value.errno == errno.EINVAL
    assert [store.data for store in host.journal.stores("/sys/bus/ap/apmask")] == ["-5\n"]
    assert host.journal.stores("/sys/bus/ap/aqmask") == []
    (refusal,) = host.refusals()
    assert (refusal.operation, refusal.data, refusal.errno) == ("write", "+256\n", "EINVAL")
    assert "numbers are 0..255" in refusal.why
    assert host.refusals("/sys/bus/*") == [refusal]
    assert host.refusals("/sys/devices/*") == []
    assert [event.devpath[-7:] for event in host.uevents(action="bind")] == ["05.0004", "05.0047", "05.00ab", "05.00ff"]
    assert dict(host.uevents("*/05.0047", "bind")[0].keys)["DRIVER"] == "vfio_ap"


def test_console_and_what_happened_since(host: Files) -> None:
    with pytest.raises((KernelError, OSError)):
        host.console("plug 5 CEX7P")
    before = host.journal
    host.console("plug 7 CEX7P", "scan")
    since = host.journal.since(before.last)
    assert [verb.text for verb in since.of_kind(Verb)] == ["plug 7 CEX7P", "scan"]
    assert since.of_kind(Refusal) == []
    assert len(before.of_kind(Refusal)) == 1
    assert before.uevents("/devices/ap/card07") == []
    assert host.journal.uevents("/devices/ap/card07")[0].action == "add"
    host.echo(UUID, CREATE)
    assert any(UUID in line for line in host.kmsg())
    assert list(host.status()["cards"]) == ["05", "06", "07", "0a"]


@pytest.mark.apfs_scenario("migration-source")
def test_guests(apfs_host: Shell, apfs_mount: MountedHost) -> None:
    for host in (apfs_host, apfs_mount):
        guest = host.guest(UUID)
        queues = [name for name in guest.ls("/sys/bus/ap/devices") if "." in name]
        assert queues == ["05.0004", "05.0047", "06.0004", "06.0047"]
        guest.echo("-5", "/sys/bus/ap/apmask")
        assert guest.status()["bindings"]["bound"] == 2
        assert [store.path for store in guest.journal.stores("*")] == ["/sys/bus/ap/apmask"]
        assert host.journal.stores("/sys/bus/ap/apmask") == []
    assert apfs_host.guest(UUID).journal == apfs_mount.guest(UUID).journal
    assert apfs_mount.guest(UUID).sh("cat /sys/bus/ap/bindings").stdout == "2/4\n"
    with pytest.raises(MountsError, match="has no mediated device nonsense"):
        apfs_mount.guest("nonsense")


def test_both_kinds_of_hosts_tell_the_same_story(apfs_host: Shell, apfs_mount: MountedHost) -> None:
    for host in (apfs_host, apfs_mount):
        host.echo("-5,-6", "/sys/bus/ap/apmask")
        host.echo(UUID, CREATE)
        host.echo(5, f"{MATRIX}/{UUID}/assign_adapter")
        host.echo(0x47, f"{MATRIX}/{UUID}/assign_domain")
        host.echo(1, f"/dev/vfio-ap/{UUID}/guest")
        for number in (0x0A, 300):
            with pytest.raises((KernelError, OSError)):
                host.echo(number, f"{MATRIX}/{UUID}/assign_adapter")
        host.console("fail-reset 05.0047", "checkstop 5 on", "scan")
        host.echo("STOP", f"/dev/vfio-ap/{UUID}/migration_state")
        host.echo("0", f"/dev/vfio-ap/{UUID}/guest")
    kinds = {record.kind for record in apfs_host.journal}
    assert {"store", "refusal", "uevent", "log", "guest", "reset", "migration", "verb"} <= kinds
    assert apfs_host.journal == apfs_mount.journal
    assert apfs_host.status() == apfs_mount.status()


def test_commands(apfs_mount: MountedHost, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("cat; echo $A; pwd; echo said >&2; exit 3")
    done = apfs_mount.exec("sh", tmp_path / "script", stdin="hello ", env={"A": "b"}, cwd="/usr")
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello b\n/usr\n", "said\n")
    done = apfs_mount.sh('echo "$1" > /sys/bus/ap/apmask && cat /sys/bus/ap/apmask', "-5")
    assert done.stdout == apfs_mount.cat("/sys/bus/ap/apmask")
    done = apfs_mount.sh("LC_ALL=C; echo 256 > /sys/bus/ap/ap_domain")
    assert (done.returncode, done.stderr) == (1, "bash: line 1: echo: write error: Invalid argument\n")
    place = "/etc/apfs-was-here"
    done = apfs_mount.sh('touch "$1/file" && ls "$1"', place, options=("--tmpfs", place), check=True)
    assert done.stdout == "file\n"
    assert not Path(place).exists()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        apfs_mount.sh("echo why >&2; exit 4", check=True)
    assert caught.value.returncode == 4
    assert caught.value.__notes__ == ["why"]
    assert (apfs_mount.path / "sys/bus/ap/ap_domain").read_text() == "4\n"
    assert apfs_mount.alive


@pytest.mark.apfs_scenario("kernel-doc")
def test_scenario_of_the_gallery(host: Files) -> None:
    assert host.status()["scenario"] == "kernel-doc"


@pytest.mark.apfs_scenario("sub/mine.toml")
def test_file_beside_the_test(host: Files) -> None:
    assert host.status()["scenario"] == "mine"


@pytest.mark.apfs_scenario(Path(__file__).parent / "sub" / "mine.toml")
def test_path(host: Files) -> None:
    assert host.status()["scenario"] == "mine"


@pytest.mark.apfs_scenario(ONE_CARD)
def test_text(host: Files) -> None:
    assert list(host.status()["cards"]) == ["03"]


@pytest.mark.parametrize("apfs_host", ["default"], indirect=True)
@pytest.mark.parametrize(("apfs_mount", "cards"), CARDS.items(), indirect=["apfs_mount"])
@pytest.mark.apfs_scenario("empty")
def test_parameters_outdo_the_marker(apfs_host: Shell, apfs_mount: MountedHost, cards: int) -> None:
    assert len(apfs_mount.status()["cards"]) == cards
    assert len(apfs_host.status()["cards"]) == 3


@pytest.mark.apfs_scenario("empty")
class TestClass:
    def test_marker_of_the_class(self, apfs_host: Shell) -> None:
        assert apfs_host.status()["cards"] == {}

    @pytest.mark.apfs_scenario
    def test_nearer_marker(self, apfs_host: Shell) -> None:
        assert apfs_host.host.scenario.name == "default"


def test_time_passes_only_when_told(apfs_mount: MountedHost) -> None:
    scans = int(apfs_mount.cat("/sys/bus/ap/scans"))
    apfs_mount.console("tick 60")
    assert int(apfs_mount.cat("/sys/bus/ap/scans")) == scans + 2


@pytest.mark.parametrize(
    "expected",
    ["manual", pytest.param("real", marks=pytest.mark.apfs_scenario(clock="real"))],
)
def test_clock(apfs_mount: MountedHost, expected: str) -> None:
    assert apfs_mount.status()["clock"] == expected


def test_migration(apfs_pair: Pair) -> None:
    assert apfs_pair.check(UUID).ok
    outcome = apfs_pair.migrate(UUID)
    assert outcome.ok
    assert outcome.stream == 72
    assert not apfs_pair.source.status()["mdevs"][UUID]["guest"]
    assert apfs_pair.target.sh(f"cat /dev/vfio-ap/{UUID}/migration_state").stdout == "RUNNING\n"


@pytest.mark.apfs_scenario("migration-source", "target-stateless")
def test_migration_that_is_refused(apfs_pair: Pair) -> None:
    assert apfs_pair.check(UUID).errno == "EFAULT"
    assert not apfs_pair.migrate(UUID).ok
    assert any("does not fit" in line for line in apfs_pair.target.kmsg())


@pytest.mark.parametrize("apfs_pair", [("migration-source", "target-older-type")], indirect=True)
def test_pair_by_parameter(apfs_pair: Pair) -> None:
    assert not apfs_pair.check(UUID).ok


@pytest.mark.apfs_scenario("kernel-doc")
def test_one_scenario_for_two_hosts(apfs_pair: Pair) -> None:
    assert apfs_pair.source.status() == apfs_pair.target.status()
    assert apfs_pair.source.path != apfs_pair.target.path
