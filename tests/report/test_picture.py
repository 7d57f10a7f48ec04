"""Pictures: what they say of a host, and why a guest does not get what is assigned."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apfs import Host, Shell, load
from apfs.ctl.status import document, status
from apfs.report.picture import patch, picture
from tests.report.stories import FIRST, MDEVS, THIRD

if TYPE_CHECKING:
    from apfs.report.picture import Picture


def of(shell: Shell) -> Picture:
    return picture(document(shell.host))


@pytest.mark.parametrize("scenario", ["default", "kernel-doc", "empty", "secure-execution", "migration-source"])
def test_picture_of_a_host_is_that_of_its_status_as_text(scenario: str) -> None:
    host = Host(load(scenario))
    assert picture(document(host)) == picture(json.loads(status(host)))


def test_queues_of_a_card_by_who_has_them() -> None:
    shell = Shell(Host(load("default")))
    shell.echo("-5", "/sys/bus/ap/apmask")
    shell.echo(0, "/sys/devices/ap/card06/06.0047/online")
    shell.echo("05.0047", "/sys/bus/ap/drivers/vfio_ap/unbind")
    cards = of(shell)["cards"]
    assert cards["05"]["queues"] == {"vfio_ap": "0004 00ab 00ff", "unbound": "0047"}
    assert cards["06"]["queues"] == {"zcrypt": "0004 00ab 00ff", "offline": "0047"}


def test_masks_and_host() -> None:
    shell = Shell(Host(load("default")))
    shell.echo("-5", "/sys/bus/ap/apmask")
    found = of(shell)
    assert found["masks"] == {"apmask": "00-04 06-ff", "aqmask": "0000-00ff"}
    assert found["host"]["bindings"] == "12 of 12 queues, complete"


def test_a_guest_and_both_matrices() -> None:
    shell = Shell(Host(load("kernel-doc")))
    shell.echo(1, f"/dev/vfio-ap/{FIRST}/guest")
    mdev = of(shell)["mdevs"][FIRST]
    matrix = {"adapters": "05-06", "domains": "0004 00ab", "control_domains": "0004 00ab"}
    assert mdev == {
        "opened by": "guest",
        "guest": "runs",
        "migration": "RUNNING",
        "matrix": matrix,
        "guest_matrix": matrix,
        "filtered": {},
    }
    assert of(shell)["guests"][FIRST]["queues"] == "4, complete"


def unbind(shell: Shell) -> None:
    shell.echo("06.00ff", "/sys/bus/ap/drivers/vfio_ap/unbind")


def remove_domain(shell: Shell) -> None:
    shell.console("remove-domain 0xff", "scan")


def unplug(shell: Shell) -> None:
    shell.console("unplug 6", "scan")


def fail_two_resets(shell: Shell) -> None:
    fail_reset(shell, "fail-reset 06.0047 7")


def fail_reset(shell: Shell, *then: str) -> None:
    shell.console("fail-reset 06.0047 7")
    shell.echo(1, f"/dev/vfio-ap/{THIRD}/guest")
    shell.echo(0, f"/dev/vfio-ap/{THIRD}/guest")
    shell.console(*then)
    shell.echo("0xff", f"{MDEVS}/{THIRD}/unassign_domain")
    shell.echo("0xff", f"{MDEVS}/{THIRD}/assign_domain")


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (unbind, {"06": "06.00ff without a driver"}),
        (remove_domain, {"00ff": "not a usage domain of the host"}),
        (unplug, {"06": "not an adapter of the host"}),
        (fail_two_resets, {"06": "06.0047: its last reset ended with response code 7"}),
        # The reset of what was taken out has succeeded.
        (
            fail_reset,
            {"06": "nothing is in the way any more: vfio_ap looks again when the next change makes it filter"},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_why_a_guest_does_not_get_what_is_assigned(change: Any, reasons: dict[str, str]) -> None:  # noqa: ANN401
    shell = Shell(Host(load("kernel-doc")))
    change(shell)
    assert of(shell)["mdevs"][THIRD]["filtered"] == reasons


def test_queues_with_zcrypt_and_queues_that_are_not_there_are_named_up_to_four() -> None:
    host = json.loads(status(Host(load("kernel-doc"))))
    mdev = host["mdevs"][THIRD]
    mdev["guest_matrix"]["adapters"] = []
    mdev["matrix"]["domains"] = host["usage_domains"] = [0x47, *range(8, 14)]
    host["cards"]["06"]["drivers"] = {"cex4queue": [0x47]}
    reason = "06.0047 with zcrypt; 06.0008 06.0009 06.000a 06.000b and 2 more not there"
    assert picture(host)["mdevs"][THIRD]["filtered"]["06"] == reason


def patched(state: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Apply a merge patch, as RFC 7396 has it."""
    result = dict(state)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            inner = result.get(key)
            result[key] = patched(inner if isinstance(inner, dict) else {}, value)
        else:
            result[key] = value
    return result


KEYS = st.sampled_from("abc")
TREES = st.dictionaries(KEYS, st.recursive(st.text(max_size=2), lambda inner: st.dictionaries(KEYS, inner, max_size=3)))


@given(TREES, TREES)
def test_a_patch_makes_one_picture_of_another(before: dict[str, Any], after: dict[str, Any]) -> None:
    changes = patch(before, after)
    assert patched(before, changes) == after
    assert bool(changes) == (before != after)
