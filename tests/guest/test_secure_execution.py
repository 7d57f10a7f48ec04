"""Guests in Secure Execution mode bind and associate their queues, and the host's hardware knows it."""

from __future__ import annotations

import pytest

from apfs.ap.qinfo import FIELDS
from apfs.scenario.model import ScenarioError
from tests.hosts import M1, M2, Bench, queue, refused
from tests.vfio_ap.streams import state, transfer, write

from .guests import HOST, on, started

USABLE, NO_KEY, UNBOUND = 0, 1, 2


def bind_state(host: Bench, apid: int, apqi: int = 4) -> int:
    """Return what TAPQ tells the host of a queue."""
    return FIELDS["bs"].get(host.host.machine.tapq(apid, apqi)[1])


def test_only_guests_in_this_mode_bind_queues() -> None:
    assert not on(started()).exists(f"{queue('05.0004')}/se_bind")
    assert on(started(secure=True)).cat(f"{queue('05.0004')}/se_bind") == "unbound\n"


def test_without_the_facility_nothing_is_bound() -> None:
    host = started(HOST.replace(', "APSB"', ""), secure=True)
    assert not on(host).exists(f"{queue('05.0004')}/se_bind")
    assert bind_state(host, 5) == USABLE


def test_queues_are_available_for_binding_while_the_guest_has_them() -> None:
    host = started(adapters=(5,), secure=True)
    assert (bind_state(host, 5), bind_state(host, 6)) == (UNBOUND, USABLE)
    host.assign(M1, (6,))
    assert bind_state(host, 6) == UNBOUND
    host.put(M1, "unassign_adapter", 5)
    assert bind_state(host, 5) == USABLE


def test_binding_and_association_are_seen_by_the_host() -> None:
    host = started(adapters=(5, 8), secure=True)
    guest = on(host)
    for name in ("05.0004", "08.0004"):
        guest.echo(1, f"{queue(name)}/se_bind")
        assert guest.cat(f"{queue(name)}/se_bind") == "bound\n"
    assert (bind_state(host, 5), bind_state(host, 8)) == (NO_KEY, USABLE)
    guest.echo(7, f"{queue('05.0004')}/se_associate")
    assert guest.cat(f"{queue('05.0004')}/se_associate") == "associated 7\n"
    assert bind_state(host, 5) == USABLE
    assert bind_state(host, 5, 0xAB) == UNBOUND


def test_a_binding_ends_with_the_guest() -> None:
    host = started(adapters=(5, 8), secure=True)
    guest = on(host)
    guest.echo(1, f"{queue('05.0004')}/se_bind")
    guest.echo(7, f"{queue('05.0004')}/se_associate")
    host.run_guest(M1, 0)
    assert (bind_state(host, 5), bind_state(host, 8)) == (USABLE, USABLE)
    host.run_guest(M1)
    assert on(host).cat(f"{queue('05.0004')}/se_bind") == "unbound\n"
    assert on(host).cat(f"{queue('05.0004')}/se_associate") == "unassociated\n"


def test_cca_queues_cannot_be_bound() -> None:
    host = started(adapters=(9,), secure=True)
    assert not on(host).exists(f"{queue('09.0004')}/se_bind")
    assert bind_state(host, 9) == USABLE


def test_the_mode_is_chosen_before_the_guest_starts() -> None:
    host = started()
    with refused("EBUSY"):
        host.console(f"se-guest {M1} on")
    with refused("ENODEV"):
        host.console(f"se-guest {M2} on")
    host.run_guest(M1, 0)
    host.console(f"se-guest {M1} on")
    host.run_guest(M1)
    assert on(host).status()["secure_execution"]
    host.run_guest(M1, 0)
    host.console(f"se-guest {M1} off")
    host.run_guest(M1)
    assert not on(host).status()["secure_execution"]


@pytest.mark.parametrize(
    "where", ['environment = "zvm"', 'environment = "kvm"', 'environment = "kvm"\nsecure_execution = true']
)
def test_only_hosts_in_an_lpar_have_such_guests(where: str) -> None:
    host = Bench(f"{where}\n{HOST}")
    host.create(M1)
    with refused("EOPNOTSUPP"):
        host.console(f"se-guest {M1} on")
    host.console(f"se-guest {M1} off")


def test_a_scenario_may_have_such_guests_from_the_start() -> None:
    text = f'{HOST}[[mdev]]\nuuid = "{M1}"\nadapters = [5]\ndomains = [4]\nsecure_execution = true\n'
    host = Bench(f"{text}guest = true\n")
    assert on(host).cat(f"{queue('05.0004')}/se_bind") == "unbound\n"
    assert bind_state(host, 5) == UNBOUND
    host.run_guest(M1, 0)
    assert bind_state(host, 5) == USABLE
    host.run_guest(M1)
    assert on(host).status()["secure_execution"]
    with pytest.raises(ScenarioError, match=r"^scenario:19: only a host in an LPAR .* \(EOPNOTSUPP\)$"):
        Bench(f'environment = "kvm"\n{text}')


def test_revision_2_sends_no_bind_state() -> None:
    # The bus keeps a word without the bind state of the card, and that is what the driver sends.
    host = started(adapters=(5,), secure=True)
    client = f"/dev/vfio-ap/{M1}"
    host.echo("STOP_COPY", f"{client}/migration_state")
    word = int.from_bytes(host.read(f"{client}/data_stream")[8:16])
    assert FIELDS["bs"].get(word) == 0
    assert bind_state(host, 5) == UNBOUND


@pytest.mark.parametrize(("driver", "refusal"), [("v4", "EFAULT"), ("next", "EINVAL")])
def test_later_revisions_take_usable_queues_only(driver: str, refusal: str) -> None:
    text = f'driver = "{driver}"{HOST}'

    def migrate(target: Bench, *used: str) -> bool | str:
        """Migrate a guest that uses some queues; return the errno, or whether the stream was taken."""
        source = started(text, (5,), secure=True)
        for name in used:
            on(source).echo(1, f"{queue(name)}/se_bind")
            on(source).echo(7, f"{queue(name)}/se_associate")
        state(source, "STOP_COPY")
        stream = bytes(transfer(source).read(0, 4096))
        state(target, "RESUMING")
        (result,) = write(target, stream)
        return result if isinstance(result, str) else result == len(stream)

    target = started(text, (5,))
    assert migrate(target, "05.0004") == refusal
    assert [line for line in target.log() if "05.0004" in line] == []
    assert any("05.00ab" in line and "bind/associate state" in line for line in target.log())
    assert migrate(started(text, (5,)), "05.0004", "05.00ab") is True
