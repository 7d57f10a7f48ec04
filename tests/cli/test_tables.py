"""Tables and lines for people, from hosts without a mount: what is in them, and how wide and colourful they are."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from apfs.cli import tables as printed
from apfs.cli import terminal
from apfs.host import Host
from apfs.journal.records import KINDS, Refusal
from apfs.scenario.reader import load, loads
from apfs.testing.files import Shell
from tests.hosts import BARE, M1, M2, MDEV_DRIVER, RESERVED, Bench, built, refused

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def tables(shell: Shell, file: io.StringIO | None = None) -> str:
    return printed.status(shell.status(), terminal.console(file or io.StringIO()))


def part(text: str, title: str) -> list[list[str]]:
    """Return the rows of one table, each as its cells."""
    (block,) = (block for block in text.split("\n\n") if block.partition("\n")[0] == title)
    return [re.split(r"  +", line) for line in block.splitlines()[1:]]


def test_small_host() -> None:
    bench = built()
    bench.run_guest(M1)
    assert (
        tables(bench)
        == f"""\
host
scenario         worked, vfio_ap v2, apfs {bench.status()["apfs"]}
scan             every 30 s, which pass by the console verb tick only
bindings         12 of 12 queues, complete
adapters         05-07
usage domains    0004 0047 00ab 00ff
control domains  0004 0047 00ab 00ff
default domain   0004
apmask           00-04 07-ff
aqmask           0000-00ff
kernel           Linux 7.2
modules          zcrypt zcrypt_cex4 mdev vfio vfio_iommu_type1 vfio_ap

cards
card   type   mode  driver    config  online  chkstop  queues each
05-07  CEX8C  cca   cex4card  1       1       0        4

queues
card   driver     state       domains
05-06  vfio_ap    unassigned  0047 00ff
05-06  vfio_ap    in use      0004 00ab
07     cex4queue  online      0004 0047 00ab 00ff

mediated devices
uuid                                  group  device  opened by  migration
{M1}  0      vfio0   guest      RUNNING

matrices of mediated devices
uuid                                  matrix    adapters  domains    control
{M1}  assigned  05-06     0004 00ab  0004 00ab
                                      guest     05-06     0004 00ab  0004 00ab

guests
uuid                                  cards  queues  bindings  modules             guests
{M1}  05-06  4       complete  zcrypt zcrypt_cex4  -
"""
    )


def test_largest_host_fits_on_a_screen() -> None:
    shell = Shell(Host(load("largest")))
    assert part(tables(shell), "queues") == [
        ["card", "driver", "state", "domains"],
        ["00-ff", "cex4queue", "online", "0000-00ff"],
    ]
    shell.echo("+0-255,-0x10-0x1f", "/sys/bus/ap/apmask")
    shell.echo("-0x40", "/sys/bus/ap/aqmask")
    text = tables(shell)
    assert part(text, "queues")[1:] == [
        ["00-0f 20-ff", "cex4queue", "online", "0000-003f 0041-00ff"],
        ["00-0f 20-ff", "vfio_ap", "unassigned", "0040"],
        ["10-1f", "vfio_ap", "unassigned", "0000-00ff"],
    ]
    assert len(text.splitlines()) < 24


def test_states_of_queues() -> None:
    bench = built()
    bench.run_guest(M1)
    bench.unbind("06.00ff")
    bench.echo(0, "/sys/devices/ap/card07/07.0004/online")
    assert part(tables(bench), "queues")[1:] == [
        ["05", "vfio_ap", "unassigned", "0047 00ff"],
        ["05-06", "vfio_ap", "in use", "0004 00ab"],
        ["06", "vfio_ap", "unassigned", "0047"],
        ["06", "-", "unbound", "00ff"],
        ["07", "cex4queue", "online", "0047 00ab 00ff"],
        ["07", "cex4queue", "offline", "0004"],
    ]
    bench.console("configure 5 off", "checkstop 6 on", "checkstop 7 on", "scan")
    assert part(tables(bench), "queues")[1:] == [
        ["05", "vfio_ap", "unassigned, deconfigured", "0047 00ff"],
        ["05", "vfio_ap", "in use, deconfigured", "0004 00ab"],
        ["06", "vfio_ap", "unassigned, check-stopped", "0047"],
        ["06", "vfio_ap", "in use, check-stopped", "0004 00ab"],
        ["06", "-", "unbound, check-stopped", "00ff"],
        ["07", "cex4queue", "check-stopped", "0004 0047 00ab 00ff"],
    ]
    assert [row[4:7] for row in part(tables(bench), "cards")[1:]] == [["0", "0", "0"], ["1", "0", "1"]]


def test_each_queue_is_in_one_row() -> None:
    bench = built()
    bench.run_guest(M1)
    bench.unbind("05.0004")
    bench.console("checkstop 7 on", "scan", "configure 5 off")
    rows = part(tables(bench), "queues")[1:]
    seen = []
    for cards, _, _, domains in rows:
        for run in cards.split():
            first, _, last = run.partition("-")
            seen += [
                (apid, apqi)
                for apid in range(int(first, 16), int(last or first, 16) + 1)
                for apqi in (int(domain, 16) for domain in domains.split())
            ]
    assert sorted(seen) == [(apid, apqi) for apid in (5, 6, 7) for apqi in (4, 0x47, 0xAB, 0xFF)]


def test_matrices_of_the_guest_and_unbound_devices() -> None:
    bench = built()
    bench.create(M2)
    bench.echo(M2, f"{MDEV_DRIVER}/unbind")
    bench.unbind("06.00ab")
    text = tables(bench)
    assert part(text, "mediated devices")[1:] == [
        [M1, "0", "vfio0", "-", "RUNNING"],
        [M2, "-", "-", "-", "unbound"],
    ]
    assert part(text, "matrices of mediated devices")[1:] == [
        [M1, "assigned", "05-06", "0004 00ab", "0004 00ab"],
        ["", "guest", "05", "0004 00ab", "0004 00ab"],
    ]


def test_exceptions_and_faults() -> None:
    bench = Bench(RESERVED)
    bench.give("05.0047", "05.00ab")
    bench.console("fail-reset 05.0047", "fail-reset 06.0004 4", "fault /sys/bus/ap/apmask EBUSY 3")
    text = tables(bench)
    assert part(text, "exceptions") == [
        ["card", "what", "domains"],
        ["05", "driver_override vfio_ap", "0047 00ab"],
        ["05", "next reset will end with response code 7", "0047"],
        ["06", "next reset will end with response code 4", "0004"],
    ]
    assert part(text, "injected faults") == [["attribute", "error", "accesses"], ["/sys/bus/ap/apmask", "EBUSY", "3"]]


def test_failed_reset() -> None:
    bench = built()
    bench.console("fail-reset 05.0004")
    bench.run_guest(M1)
    bench.run_guest(M1, 0)
    what = "not passed to guests: last reset ended with response code 7"
    assert part(tables(bench), "exceptions")[1:] == [["05", what, "0004"]]


def test_host_with_little() -> None:
    bench = Bench(BARE)
    assert [row[-1] for row in part(tables(bench), "host")[3:9]] == ["-"] * 5 + ["0000-00ff"]
    bench.console("kvm none", "rmmod vfio_ap")
    rows = dict(part(tables(bench), "host"))
    assert rows["kvm"] == "none: programs cannot open devices"
    assert rows["modules"] == "zcrypt zcrypt_cex4 mdev vfio vfio_iommu_type1"
    without_qci = Bench("[qci]\nsupported = false\nmax_domain = 15\n")
    assert dict(part(tables(without_qci), "host"))["usage domains"] == "not known: the machine has no QCI"
    secure = Shell(Host(load("secure-execution")))
    assert dict(part(tables(secure), "host"))["secure execution"] == "guest: no live migration"


def test_incomplete_bindings_and_a_real_clock() -> None:
    bench = built()
    bench.unbind("06.00ff")
    bench.host.clock = "real"
    rows = dict(part(tables(bench), "host"))
    assert rows["bindings"] == "11 of 12 queues, not complete"
    assert rows["scan"] == "every 30 s"


def test_the_kernel_is_told_with_what_it_has_of_others() -> None:
    shell = Shell(
        Host(loads('kernel = { version = "5.14", guest_matrix = true, irqs = 2, hwrng_seed_parameter = false }'))
    )
    told = "Linux 5.14 with hwrng_seed_parameter = false, guest_matrix, irqs = 2"
    assert dict(part(tables(shell), "host"))["kernel"] == told


def test_transcripts_of_the_guide() -> None:
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text("utf-8")
    shell = Shell(Host(load("kernel-doc")))
    shell.host.clock = "real"
    uuids = list(shell.status()["mdevs"])
    shell.console("checkstop 6 on", "scan")
    shell.echo(1, f"/dev/vfio-ap/{uuids[0]}/guest")
    with refused("EADDRINUSE"):
        shell.echo(6, f"/sys/devices/vfio_ap/matrix/{uuids[1]}/assign_adapter")
    assert f"$ apfs status /tmp/z\n{tables(shell)}```\n" in page
    assert f"$ apfs journal /tmp/z\n{''.join(lines(shell))}```\n" in page


# -- width and colour ---------------------------------------------------------------------------------


def scattered() -> Bench:
    """Return a host whose domains make long ranges."""
    domains = ", ".join(str(domain) for domain in range(0, 256, 2))
    bench = Bench(f'[qci]\ndomains = [{domains}]\n[[card]]\nadapter = 5\ntype = "CEX8C"\n[masks]\napmask = "-5"\n')
    bench.create(M1)
    bench.assign(M1, [5], range(0, 256, 2))
    return bench


def test_lines_in_a_pipe_are_whole() -> None:
    text = tables(scattered())
    domains = " ".join(f"{domain:04x}" for domain in range(0, 256, 2))
    assert f"\n05    vfio_ap  assigned  {domains}\n" in text
    assert f"{M1}  assigned  05        {domains}  -\n" in text
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("width", [20, 72, 80, 133])
def test_lines_on_a_terminal_are_folded_and_lose_nothing(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = ESCAPE.sub("", tables(scattered(), Terminal()))
    assert max(map(len, text.splitlines())) <= max(width, 72)
    assert text.count("00fe") == 5  # usage and control domains, queues, both matrices
    assert text.count(M1) == 2
    assert "…" not in text


@pytest.mark.parametrize(
    ("variables", "colours"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_on_a_terminal(variables: dict[str, str], colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "200")
    bench = built()
    text = tables(bench, Terminal())
    assert ("\x1b[" in text) is colours
    plain = "".join(f"{line.rstrip()}\n" for line in ESCAPE.sub("", text).splitlines())
    assert plain == tables(bench)
    line = printed.record(LINE, terminal.console(Terminal()))
    assert ("\x1b[1;31mEINVAL: because\x1b[0m" in line) is colours
    assert ESCAPE.sub("", line) == printed.record(LINE, terminal.console(io.StringIO()))


def test_nothing_from_the_host_reaches_the_terminal() -> None:
    bench = Bench(RESERVED)
    bench.echo("\x1b[2J[bold]x", "/sys/devices/ap/card05/05.0004/driver_override")
    assert part(tables(bench), "exceptions")[1][1] == r"driver_override \x1b[2J[bold]x"


# -- the journal --------------------------------------------------------------------------------------

LINE = json.dumps({"seq": 7} | Refusal("write", "/sys/a", "1\n", "EINVAL", "because").as_dict())


def lines(bench: Shell) -> list[str]:
    out = terminal.console(io.StringIO())
    return [printed.record(line, out) for line in bench.cat("/ctl/journal").splitlines()]


def test_records_of_a_host() -> None:
    bench = built()
    bench.run_guest(M1)
    with refused("EADDRNOTAVAIL"):
        bench.put(M1, "assign_adapter", 7)
    bench.console("scan")
    shown = lines(bench)
    assert [int(line.split()[0]) for line in shown] == list(range(1, len(shown) + 1))
    path = f"/sys/devices/vfio_ap/matrix/{M1}/assign_adapter"
    (refusal,) = (line for line in shown if " refusal " in line)
    why = "queue 07.0004 is reserved for the host's zcrypt drivers: clear its bit in apmask or aqmask first"
    assert refusal[8:] == f"refusal    write {path} '7\\n': EADDRNOTAVAIL: {why}\n"
    assert {line.index(line.split()[1]) for line in shown} == {8}  # types are aligned,
    assert {line[17:19] for line in shown} == {"  "}  # and so is what follows


def test_every_type_fits_its_column() -> None:
    assert max(map(len, KINDS)) == len("interrupt")


def test_unknown_records_are_told() -> None:
    with pytest.raises(ValueError, match=r"^not a record of a journal of this apfs: "):
        printed.record('{"seq": 1, "type": "new"}', terminal.console(io.StringIO()))
