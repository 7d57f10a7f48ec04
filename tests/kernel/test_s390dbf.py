"""The debug area of vfio_ap (arch/s390/kernel/debug.c, vfio_ap_dbf_init)."""

from __future__ import annotations

import stat

from tests.hosts import BARE, Bench

AREA = "/sys/kernel/debug/s390dbf/vfio_ap"


def test_files() -> None:
    bench = Bench(BARE)
    modes = {name: stat.S_IMODE(bench.stat(f"{AREA}/{name}").mode) for name in bench.ls(AREA)}
    assert modes == {"flush": 0o200, "level": 0o600, "pages": 0o600, "sprintf": 0o400}
    assert [bench.cat(f"{AREA}/{name}") for name in ("level", "pages", "sprintf")] == ["4\n", "1\n", ""]


def test_levels_and_pages() -> None:
    bench = Bench(BARE)
    levels = []
    for text in ("6\n", "-\n", " 3 x", "7", "-5", "0"):
        assert bench.store(f"{AREA}/level", text) == ""
        levels.append(bench.cat(f"{AREA}/level").strip())
    assert levels == ["6", "-", "3", "3", "-", "0"]
    assert [bench.store(f"{AREA}/{name}", "x") for name in ("level", "pages", "flush")] == ["EINVAL", "EINVAL", ""]
    assert bench.store(f"{AREA}/pages", "16") == ""
    assert bench.cat(f"{AREA}/pages") == "16\n"


def test_it_comes_and_goes_with_the_module() -> None:
    bench = Bench(BARE)
    bench.echo("-", f"{AREA}/level")
    bench.console("rmmod vfio_ap")
    assert bench.ls("/sys/kernel/debug/s390dbf") == []
    bench.console("modprobe vfio_ap")
    assert bench.cat(f"{AREA}/level") == "4\n"
