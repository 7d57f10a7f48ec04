"""The pytest plugin in projects of users: what the fixtures give, what failures show, and that nothing stays behind."""

from __future__ import annotations

import html
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tests.conftest import TIMEOUT
from tests.testing.conftest import run, wait_for_end, wait_readable

if TYPE_CHECKING:
    from tests.testing.conftest import Project

USES = Path(__file__).with_name("uses.py")


def use_everything(project: Project) -> None:
    """Copy the tests of `uses.py` and the scenario that they need into a project."""
    project.write("test_uses.py", USES.read_text("utf-8"))
    (project.directory / "sub").mkdir()
    project.write("sub/mine.toml", 'name = "mine"\n')


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_everything_that_the_fixtures_offer(project: Project, options: tuple[str, ...]) -> None:
    use_everything(project)
    said = project.pytest("-q", "-W", "error", "--strict-markers", *options)
    assert re.search(r"^\d\d passed in", said, re.MULTILINE), said
    assert project.left_behind() == []


def test_a_project_is_checked_with_the_types_of_the_installed_package(project: Project) -> None:
    use_everything(project)
    project.write("wrong.py", "from apfs import MountedHost\nMountedHost(clock='fast')\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(project.python)]
    assert "Success" in run(*mypy, "test_uses.py", cwd=project.directory)
    result = subprocess.run([*mypy, "wrong.py"], check=False, capture_output=True, text=True, cwd=project.directory)
    assert 'wrong.py:2: error: Argument "clock"' in result.stdout


def test_the_plugin_imports_nothing_that_it_does_not_need(project: Project) -> None:
    project.write(
        "test_modules.py",
        """
import importlib.util
import sys

EXPENSIVE = {"trio", "pyfuse3", "click", "rich", "tomlkit"}

def test_modules(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("apfs")
    assert EXPENSIVE.isdisjoint(sys.modules)
    assert {name for name in sys.modules if name.startswith("apfs")} == {"apfs", "apfs.testing", "apfs.testing.plugin"}
    assert all(map(importlib.util.find_spec, EXPENSIVE))

def test_host(apfs_host):
    assert EXPENSIVE.isdisjoint(sys.modules)

def test_mount(apfs_mount):
    assert EXPENSIVE.isdisjoint(sys.modules)
""",
    )
    project.pytest()


def test_without_pyfuse3_a_host_works_and_a_mount_says_what_to_install(bare_project: Project) -> None:
    bare_project.write(
        "test_bare.py",
        """
def test_host(apfs_host):
    assert apfs_host.cat("/sys/bus/ap/bindings") == "12/12 (complete)\\n"

def test_mount(apfs_mount):
    pass
""",
    )
    said = bare_project.pytest(status=1)
    assert "1 passed, 1 error" in said
    assert "apfs_mount: mounting needs pyfuse3 and trio: install them with `pip install 'apfs[mount]'`" in said
    assert "Traceback" not in said
    assert bare_project.left_behind() == []


def test_without_dev_fuse_a_mount_says_what_to_do(project: Project) -> None:
    project.write("test_mount.py", "def test_mount(apfs_mount): pass\ndef test_pair(apfs_pair): pass")
    said = project.pytest(status=1, wrapper=("bwrap", "--dev-bind", "/", "/", "--dev", "/dev", "--"))
    assert "2 errors" in said
    assert "skipped" not in said
    reason = "there is no /dev/fuse: as root, `modprobe fuse`"
    assert f"apfs_mount: {reason}" in said
    assert f"apfs_pair: {reason}" in said
    assert project.left_behind() == []


MISTAKES = [
    ('"nosuch"', "apfs_host", "nosuch: no scenario of that name: there are default, "),
    ('"nosuch"', "apfs_mount", "nosuch: no scenario of that name: there are default, "),
    ('"no.toml"', "apfs_host", "{directory}/no.toml: No such file or directory"),
    ('"name = 3\\n"', "apfs_host", "scenario:1: name: expected a string, not 3"),
    ('"\\nname = 3"', "apfs_mount", "scenario:2: name: expected a string, not 3"),
    ('"a", "b"', "apfs_mount", "expected at most 1 of: name of a scenario, file, TOML text; not ('a', 'b')"),
    ('"a", "b", "c"', "apfs_pair", "expected at most 2 of: name of a scenario, file, TOML text; not ('a', 'b', 'c')"),
    ("7", "apfs_host", "expected at most 1 of: name of a scenario, file, TOML text; not (7,)"),
    ('clock="fast"', "apfs_mount", "apfs_scenario takes scenarios and clock='manual' or 'real', not "),
    ('speed="fast"', "apfs_mount", "apfs_scenario takes scenarios and clock='manual' or 'real', not "),
    ('clock="real"', "apfs_host", "a host without a mount has no clock: let time pass by "),
]


def test_mistakes_are_named_in_one_line(project: Project) -> None:
    tests = [
        f"@pytest.mark.apfs_scenario({marker})\ndef test_{number}({fixture}): pass\n"
        for number, (marker, fixture, _) in enumerate(MISTAKES)
    ]
    project.write("test_mistakes.py", "import pytest\n" + "".join(tests))
    said = project.pytest(status=1)
    assert f"{len(MISTAKES)} errors" in said
    reports = re.split(r"^_+ ERROR at setup of test_\d+ _+$", said, flags=re.MULTILINE)[1:]
    for report, (_, fixture, reason) in zip(reports, MISTAKES, strict=True):
        assert report.startswith(f"\n{fixture}: {reason.format(directory=project.directory)}")
        assert "pytest_plugin" not in report
    assert project.left_behind() == []


FAILING = """
import pytest
from apfs import MountedHost

def test_host(apfs_host):
    apfs_host.echo("-5", "/sys/bus/ap/apmask")
    with pytest.raises(Exception):
        apfs_host.echo("+256", "/sys/bus/ap/apmask")
    print("said")
    assert False

def test_mount(apfs_mount):
    held = open(apfs_mount.path / "sys/bus/ap/scans")
    apfs_mount.sh("for n in 0 1 2; do echo $n > /sys/bus/ap/ap_domain; done; echo 300 > /sys/bus/ap/ap_domain")
    assert held.closed

@pytest.mark.apfs_scenario("migration-source", "target-stateless")
def test_pair(apfs_pair):
    assert apfs_pair.migrate("669d9b23-fe1b-4ecb-be08-a2fabca99b71").ok

def test_good(apfs_host):
    apfs_host.echo("-7", "/sys/bus/ap/apmask")

@pytest.fixture(scope="module")
def own():
    with MountedHost("empty") as host:
        yield host

@pytest.fixture
def alias(apfs_host):
    return apfs_host

def test_own(own, alias):
    own.echo("-8", "/sys/bus/ap/apmask")
    assert False

@pytest.fixture
def broken(apfs_host):
    apfs_host.echo("-9", "/sys/bus/ap/apmask")
    raise RuntimeError("broken")

def test_setup(broken):
    pass
"""


HOSTS_OF_FAILING: dict[str, tuple[str, ...]] = {
    "host": ("apfs_host",),
    "mount": ("apfs_mount",),
    "pair": ("apfs_pair.source", "apfs_pair.target"),
    "good": (),
    "own": ("apfs_host", "own"),
    "setup": ("apfs_host",),
}


def section(said: str, name: str) -> str:
    """Return the journal that a report shows of a host; there must be one."""
    (found,) = re.findall(
        rf"^-+ apfs journal of {re.escape(name)} -+$\n(.*?)(?=^[-_=]{{3}})", said, re.DOTALL | re.MULTILINE
    )
    return str(found)


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_failures_show_the_journal(project: Project, options: tuple[str, ...]) -> None:
    project.write("test_failing.py", FAILING)
    said = project.pytest(*options, "--apfs-journals", "kept/here", "--junitxml=junit.xml", status=1)
    assert "4 failed, 1 passed, 1 error" in said
    refusals, records = section(said, "apfs_mount").split("records: ")
    assert refusals == (
        "refusals: 1\n     4 refused write /sys/bus/ap/ap_domain '300\\n': EINVAL: domain 300 is not in 0..255\n"
    )
    assert records.startswith("4\n     1 store /sys/bus/ap/ap_domain '0\\n'\n")
    assert "store /sys/bus/ap/apmask '-5" in said
    assert "source queue 05.0004 does not fit the target queue" in section(said, "apfs_pair.target")
    assert " migration 669d9b23-fe1b-4ecb-be08-a2fabca99b71 STOP -> STOP_COPY\n" in section(said, "apfs_pair.source")
    assert "store /sys/bus/ap/apmask '-8" in section(said, "own")
    assert "apfs journal of alias" not in said  # the same as apfs_host
    assert "store /sys/bus/ap/apmask '-9" in said
    assert "store /sys/bus/ap/apmask '-7" not in said
    assert project.left_behind() == []
    kept = {file.name.removeprefix("test_failing.py.test_"): file for file in project.directory.glob("kept/here/*")}
    hosts = ("host.apfs_host", "mount.apfs_mount", "pair.apfs_pair.source", "pair.apfs_pair.target", "own.own")
    assert kept.keys() == {f"{name}.json" for name in (*hosts, "own.apfs_host", "setup.apfs_host")}
    for file in kept.values():
        replayed = run(project.python, "-m", "apfs", "replay", file)
        assert replayed.startswith(f"{file}: the same; requests: ")
    assert "\napfs replay kept/here/test_failing.py.test_mount.apfs_mount.json\n" in said
    junit = ET.parse(project.directory / "junit.xml")  # noqa: S314 -- pytest has made it
    attached = junit.findtext(".//testcase[@name='test_mount']/system-out")
    assert attached == "[[ATTACHMENT|kept/here/test_failing.py.test_mount.apfs_mount.json]]\n"
    assert junit.find(".//testcase[@name='test_good']/system-out") is None


def test_names_of_kept_journals_and_what_keeps_them_from_being_written(project: Project) -> None:
    project.write(
        "test_names.py",
        """
import pytest

class TestIt:
    @pytest.mark.parametrize("text", ["a/b", "a.b", pytest.param("", id="x" * 300)])
    def test_it(self, apfs_host, text):
        assert False
""",
    )
    project.pytest("--apfs-journals=kept", status=1)
    names = sorted(file.name for file in (project.directory / "kept").iterdir())
    assert names[:2] == [f"test_names.py.TestIt.test_it[{text}].apfs_host.json" for text in ("a%2Fb", "a.b")]
    assert re.fullmatch(r"test_names\.py\.TestIt\.test_it\[x{151}~[0-9a-f]{8}\.apfs_host\.json", names[2])
    (project.directory / "file").touch()
    assert "cannot be kept: [Errno 17] File exists: 'file'" in project.pytest("--apfs-journals=file", status=1)


def test_failures_are_drawn(project: Project) -> None:
    """With xdist, which has to pass on what we add to reports."""
    project.write("test_failing.py", FAILING)
    made = ("--apfs-report=out/apfs", "--apfs-journals=kept", "--html=out/tests.html", "--junitxml=junit.xml")
    said = project.pytest("-n", "2", *made, "--override-ini=junit_logging=system-out", status=1)
    pages = sorted(path.name for path in (project.directory / "out/apfs").iterdir())
    assert pages == [f"test_failing.py.test_{name}.html" for name in ("host", "mount", "own", "pair", "setup")]
    for name in pages:
        assert f"out/apfs/{name}" in said
        assert f'"apfs/{name}"' in html.unescape((project.directory / "out/tests.html").read_text("utf-8"))
    junit = ET.parse(project.directory / "junit.xml")  # noqa: S314 -- pytest has made it
    named = [str(element.get("value")) for element in junit.iterfind(".//property[@name='apfs_report']")]
    assert sorted(named) == [f"out/apfs/{name}" for name in pages]
    # What CI systems make links of, the page first; what the test itself has said stays in front.
    outputs = {}
    for case in junit.iter("testcase"):
        (output,) = case.iter("system-out")  # GitLab expects no more
        outputs[str(case.get("name"))] = output.text or ""
    attached = {name: re.findall(r"^\[\[ATTACHMENT\|(.*)\]\]$", text, re.MULTILINE) for name, text in outputs.items()}
    assert attached == {
        f"test_{name}": [
            *(f"out/apfs/test_failing.py.test_{name}.html" for _ in hosts[:1]),
            *(f"kept/test_failing.py.test_{name}.{host}.json" for host in hosts),
        ]
        for name, hosts in HOSTS_OF_FAILING.items()
    }
    assert re.search(r"^-+ Captured Out -+\nsaid\n", outputs["test_host"], re.MULTILINE)
    pair = (project.directory / "out/apfs/test_failing.py.test_pair.html").read_text("utf-8")
    assert "apfs_pair.source" in pair
    assert "apfs_pair.target" in pair
    assert "verdicts" in pair
    assert project.left_behind() == []


WAITING = """
import os

def test_waiting(apfs_mount, apfs_pair):
    script = 'echo running > "$1"; exec -a "$2" sleep infinity'
    apfs_mount.exec("bash", "-c", script, "bash", os.environ["FIFO"], os.environ["NAME"], timeout=None)
"""


# With xdist only the hardest way: its workers need five seconds each time until they notice.
@pytest.mark.parametrize(
    ("number", "options"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGKILL, ()), (signal.SIGKILL, ("-n", "1"))],
)
def test_whatever_ends_the_run_nothing_stays(
    project: Project, number: signal.Signals, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("test_waiting.py", WAITING)
    fifo = project.tmp / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setenv("FIFO", str(fifo))
    monkeypatch.setenv("NAME", f"{project.tmp}/apfs-sleeper")
    running = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with project.start(*options) as tests:
        wait_readable(running)
        os.close(running)
        pids = project.processes()
        # Two servers and more: a pair and one, mount helpers, and what belongs to the command.
        assert len(pids) > 3
        pidfds = [os.pidfd_open(pid) for pid in pids]
        tests.send_signal(number)
        status = tests.wait(TIMEOUT)
    assert status == (2 if number == signal.SIGINT else -number)
    wait_for_end(pidfds)
    assert project.left_behind() == []


ALL_DYING = """
import os
import signal
from pathlib import Path

from apfs.mounts import forks

def with_word(word):
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(word) in (entry / "cmdline").read_bytes():
                yield int(entry.name)
        except OSError:
            pass

def test_killed(apfs_mount):
    others = [forks._servers[-1]._process.pid, apfs_mount.pid, *with_word(apfs_mount.path)]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)  # so that none notices what happens to others
    for pid in (*others, os.getpid()):
        os.kill(pid, signal.SIGKILL)

def test_next(apfs_mount):
    assert apfs_mount.sh("true").returncode == 0
"""


def test_all_are_killed_at_once(project: Project) -> None:
    """Pytest, or a worker of xdist, with all that belongs to it: the next host clears away what stays."""
    project.write("test_all_dying.py", ALL_DYING)
    project.pytest(status=-signal.SIGKILL)
    assert any(" fuse.apfs " in line for line in project.left_behind())
    assert "1 passed" in project.pytest("-k", "next")
    assert project.left_behind() == []
    said = project.pytest("-n", "1", status=1)
    assert "1 failed, 1 passed" in said
    assert re.search(r"worker 'gw\d' crashed while running 'test_all_dying.py::test_killed'", said)
    assert project.left_behind() == []


DYING = """
import os
import select
import signal
import pytest

def kill(host):
    with open(os.pidfd_open(host.pid), "rb") as ended:
        os.kill(host.pid, signal.SIGKILL)
        select.select([ended], [], [])

def test_killed(apfs_mount):
    os.open(apfs_mount.path / "sys/bus/ap/scans", os.O_RDONLY)  # still open when the mount is cleared away
    kill(apfs_mount)
    assert not apfs_mount.alive
    with pytest.raises(OSError):
        apfs_mount.cat("/sys/bus/ap/scans")
    assert apfs_mount.sh("true").returncode == 125

def test_killed_and_failed(apfs_pair):
    kill(apfs_pair.source)
    assert False

def test_next(apfs_mount):
    assert apfs_mount.alive
"""


def path_without_fusermount(place: Path) -> str:
    """Return a PATH on which there is everything but the helper that clears dead mounts away."""
    place.mkdir()
    for directory in os.environ["PATH"].split(":"):
        for program in Path(directory).glob("*"):
            if program.name != "fusermount3" and not os.path.lexists(place / program.name):
                (place / program.name).symlink_to(program)
    return str(place)


# Only root can mount without the helper.
@pytest.mark.parametrize("helper", [True] if os.geteuid() else [True, False])
def test_killed_servers(project: Project, monkeypatch: pytest.MonkeyPatch, helper: bool) -> None:  # noqa: FBT001
    if not helper:
        monkeypatch.setenv("PATH", path_without_fusermount(project.tmp / "bin"))
    project.write("test_dying.py", DYING)
    said = project.pytest("--apfs-report=reports", status=1)
    assert "apfs_pair.source cannot be drawn, the host's server is gone: " in said
    assert "reports/test_dying.py.test_killed_and_failed.html" in said
    assert "1 failed, 2 passed" in said
    assert section(said, "apfs_pair.source").startswith("cannot be read, the host's server is gone: ")
    assert section(said, "apfs_pair.target").startswith("refusals: 0\n")
    assert project.left_behind() == []
