"""Time that passes at once is the same as time that passes second by second, and costs no more than there is to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.calls import calls
from tests.examples import times
from tests.hosts import M1, Bench

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST = f"""
[qci]
domains = [4, 9]
[[card]]
adapters = [5, 6]
type = "CEX8C"
[masks]
apmask = "-5"
[[mdev]]
uuid = "{M1}"
adapters = [5]
domains = [4, 9]
guest = true
"""
GUEST = f"/guests/{M1}/sys/bus/ap"
EARLIER = ("tapq 6 at=9", "tapq 05.0009 bs=1", f"config-events {M1} on", "requests 06.0004 count=5 pending=2", "tick 7")
LATER = ("plug 7 CEX8C", "configure 5 off", "checkstop 6 on", "add-domain 12", "remove-domain 9", "unplug 6")


def host(kernel: str, periods: tuple[int, int], verbs: Sequence[str]) -> Bench:
    bench = Bench(f'kernel = "{kernel}"\n{HOST}')
    bench.echo(periods[0], "/sys/bus/ap/config_time")
    bench.echo(periods[1], f"{GUEST}/config_time")
    bench.console(*verbs)
    return bench


def seen(bench: Bench) -> tuple[object, ...]:
    """Return all that can be seen of a host, and when its next scan is."""
    events = [(record.action, record.devpath, record.keys) for record in bench.uevents()]
    return (bench.dump("/sys", "/guests"), bench.status(), events, bench.host.until_scan)


@times(0.2)
@given(
    st.sampled_from(("6.1", "6.9", "7.2")),
    st.tuples(st.integers(5, 40), st.integers(5, 40)),
    st.sets(st.sampled_from((*EARLIER, *LATER)), max_size=3),
    st.integers(0, 200),
)
def test_at_once_is_as_second_by_second(kernel: str, periods: tuple[int, int], verbs: set[str], seconds: int) -> None:
    story = [verb for verb in (*EARLIER, *LATER) if verb in verbs]
    at_once, slowly = host(kernel, periods, story), host(kernel, periods, story)
    at_once.host.tick(seconds)
    for _ in range(seconds):
        slowly.host.tick(1)
    assert seen(at_once) == seen(slowly)


def test_a_quiet_day_is_no_more_work_than_ten_minutes() -> None:
    short, long = host("7.2", (5, 30), ["plug 7 CEX8C"]), host("7.2", (5, 30), ["plug 7 CEX8C"])
    few, many = calls(lambda: short.console("tick 600")), calls(lambda: long.console("tick 86400"))
    assert many == pytest.approx(few, rel=0.01)
    assert (long.cat("/sys/bus/ap/scans"), long.cat(f"{GUEST}/scans")) == (
        f"{1 + 86400 // 5}\n",
        f"{1 + 86400 // 30}\n",
    )
    assert long.exists("/sys/devices/ap/card07/07.0004")
