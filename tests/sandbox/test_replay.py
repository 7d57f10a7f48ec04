"""The journal of a mount, on which real programs have worked, replays to itself."""

from __future__ import annotations

import pytest

from apfs.ctl import views
from apfs.ctl.header import head
from apfs.ctl.status import status
from apfs.journal.history import History
from apfs.journal.records import Close, Inside, Interrupt, Ioctl, Open, Setattr, Transfer
from apfs.replay.replay import replay
from apfs.testing.mounted import MountedHost, Pair
from tests.conftest import apfs
from tests.sandbox.conftest import run
from tests.sandbox.programs import events, files

U = "669d9b23-fe1b-4ecb-be08-a2fabca99b71"


def replayed(host: MountedHost) -> History:
    """Replay what `apfs journal --json` prints of a host: byte for byte, and to the same state. Return the history."""
    printed = apfs("journal", "--json", str(host.path)).stdout
    found = replay(History.parse(printed))
    assert found.differences == ()
    journal = found.host.journal
    assert head(found.host) + views.journal(journal, journal.since(0)) == printed
    assert status(found.host) == host.cat("/ctl/status")
    return History.parse(printed)


def test_ioctls_signals_and_files_of_programs() -> None:
    with MountedHost() as host:
        for program in (events.both, files.stream):
            run(program, options=("--mount", str(host.path)), scenario=None)
        history = replayed(host)
    for kind in (Open, Close, Ioctl, Interrupt, Transfer):
        assert history.of_kind(kind)


def test_a_live_migration_on_both_hosts() -> None:
    with MountedHost("migration-source") as source, MountedHost("migration-target") as target:
        source.guest(U).console("modprobe vfio_ap")
        source.guest(U).echo("0x0", "/sys/bus/ap/apmask")
        (source.path / "sys/bus/ap/apmask").chmod(0o600)
        with pytest.raises(OSError, match="Invalid argument"):
            source.echo("999", "/sys/bus/ap/ap_domain")
        assert Pair(source, target).migrate(U).ok
        assert {type(record) for record in replayed(source)} >= {Transfer, Inside, Setattr}
        assert replayed(target).of_kind(Transfer)
