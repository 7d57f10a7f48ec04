"""The pytest plugin: emulated hosts as fixtures. docs/pytest.md is its guide.

pytest imports this module in every run of every project with apfs in its environment. So it imports the rest of apfs
only when a fixture is used.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from apfs.testing.files import Files, Shell
    from apfs.testing.libvirt import Libvirt, LibvirtPair
    from apfs.testing.mounted import Clock, MountedHost, Pair

MARKER = "apfs_scenario"
JOURNALS = "--apfs-journals"
REPORTS = "--apfs-report"
_HOSTS = pytest.StashKey[dict[str, "Files"]]()
_LIBVIRTS = pytest.StashKey[dict[str, "Libvirt"]]()


class _Wanted(NamedTuple):
    """What a test asks for by its marker and its parameter."""

    scenarios: tuple[str, ...]
    clock: Clock


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("apfs")
    group.addoption(
        JOURNALS,
        metavar="DIR",
        help="save the journals of failed tests' hosts in this directory, for `apfs replay`",
    )
    group.addoption(
        REPORTS,
        metavar="DIR",
        help="save an HTML page for each failed test in this directory, like `apfs report`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, for --strict-markers and --markers."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(scenario, target, *, clock='manual'): hosts of apfs_host, apfs_mount, apfs_pair, "
        "apfs_libvirt and apfs_libvirt_pair: names of "
        "scenarios, TOML files relative to the test's file, or TOML texts; target is for pairs only.",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the journals of a failed test's hosts; keep and draw all of it if that is wanted."""
    report = yield
    if report.failed:
        hosts, directory = _hosts(item), item.config.getoption(JOURNALS)
        for name, host in hosts.items():
            report.sections.append((f"apfs journal of {name}", _journal(host)))
            if directory:
                _keep(item, report, name, host)
        if hosts and item.config.getoption(REPORTS):
            _draw(item, report, hosts)
        for name, libvirt in item.stash.get(_LIBVIRTS, {}).items():
            report.sections.append((f"apfs logs of {name}", libvirt.report()))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Let JUnit's output, which has just been written, name what was kept. Workers of xdist write none."""
    yield
    file = session.config.getoption("xmlpath", None)
    wanted = any(map(session.config.getoption, (JOURNALS, REPORTS)))
    if file and wanted and not hasattr(session.config, "workerinput"):
        from apfs.testing import junit  # noqa: PLC0415 -- see the head of the file

        # As pytest finds it from the option.
        junit.attach(session.config.invocation_params.dir / Path(os.path.expandvars(file)).expanduser())


@pytest.fixture
def apfs_host(request: pytest.FixtureRequest) -> Iterator[Shell]:
    """Boot a host in this process, without a mount: works everywhere and starts at once.

    Refusals are `apfs.KernelError`. The machine itself is `apfs_host.host`.
    """
    from apfs.host import Host  # noqa: PLC0415 -- see the head of the file
    from apfs.scenario.model import ScenarioError  # noqa: PLC0415
    from apfs.scenario.reader import load, loads  # noqa: PLC0415
    from apfs.testing.files import Shell  # noqa: PLC0415

    wanted = _wanted(request, 1)
    if wanted.clock == "real":
        raise _error(request, "a host without a mount has no clock: let time pass by apfs_host.console('tick 60')")
    scenario = wanted.scenarios[0] if wanted.scenarios else "default"
    try:
        shell = Shell(Host(loads(scenario) if "\n" in scenario else load(scenario)))
    except ScenarioError as error:
        raise _error(request, error) from None
    with _reported(request, {"apfs_host": shell}):
        yield shell


@pytest.fixture
def apfs_mount(request: pytest.FixtureRequest) -> Iterator[MountedHost]:
    """Mount a host on its own directory, for real programs; it ends with the test in any case."""
    with _mounted(request, {"apfs_mount": "default"}) as hosts:
        yield hosts["apfs_mount"]


@pytest.fixture
def apfs_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Mount two hosts for a live migration; by default two compatible ones of the gallery."""
    from apfs.testing.mounted import Pair  # noqa: PLC0415 -- see the head of the file

    names = {"apfs_pair.source": "migration-source", "apfs_pair.target": "migration-target"}
    with _mounted(request, names) as hosts:
        yield Pair(*hosts.values())


@pytest.fixture
def apfs_libvirt(request: pytest.FixtureRequest) -> Iterator[Libvirt]:
    """Start a libvirtd on a mounted host; it ends with the test, and its guests with it.

    By default the host is migration-source of the gallery, which has a mediated device.
    """
    with (
        _mounted(request, {"apfs_libvirt.host": "migration-source"}) as hosts,
        _libvirts(request, {"apfs_libvirt": hosts["apfs_libvirt.host"]}) as libvirts,
    ):
        yield libvirts["apfs_libvirt"]


@pytest.fixture
def apfs_libvirt_pair(request: pytest.FixtureRequest) -> Iterator[LibvirtPair]:
    """Start a libvirtd on each of two mounted hosts, for live migrations; by default on compatible ones."""
    from apfs.testing.libvirt import LibvirtPair  # noqa: PLC0415 -- see the head of the file

    names = {"apfs_libvirt_pair.source": "migration-source", "apfs_libvirt_pair.target": "migration-target"}
    hosts = {f"{name}.host": scenario for name, scenario in names.items()}
    with (
        _mounted(request, hosts) as mounted,
        _libvirts(request, {name: mounted[f"{name}.host"] for name in names}) as libvirts,
    ):
        yield LibvirtPair(*libvirts.values())


@contextmanager
def _libvirts(request: pytest.FixtureRequest, hosts: dict[str, MountedHost]) -> Iterator[dict[str, Libvirt]]:
    """Start libvirtd on hosts, by the names under which a report shows the logs."""
    from apfs.testing.libvirt import Libvirt, LibvirtError  # noqa: PLC0415 -- see the head of the file

    known = request.node.stash.setdefault(_LIBVIRTS, {})
    with ExitStack() as stack:
        for name, host in hosts.items():
            try:
                known[name] = stack.enter_context(Libvirt(host))
            except LibvirtError as error:
                raise _error(request, error) from None
            stack.callback(known.pop, name)
        yield {name: known[name] for name in hosts}


@contextmanager
def _mounted(request: pytest.FixtureRequest, defaults: dict[str, str]) -> Iterator[dict[str, MountedHost]]:
    """Mount hosts by the names under which a report shows them; one wanted scenario is for all of them."""
    from apfs.mounts.table import MountsError  # noqa: PLC0415 -- see the head of the file
    from apfs.testing.mounted import MountedHost  # noqa: PLC0415

    wanted = _wanted(request, len(defaults))
    scenarios = wanted.scenarios or tuple(defaults.values())
    if len(scenarios) < len(defaults):
        scenarios *= len(defaults)
    with ExitStack() as stack:
        hosts = {}
        for name, scenario in zip(defaults, scenarios, strict=True):
            try:
                hosts[name] = stack.enter_context(MountedHost(scenario, clock=wanted.clock))
            except MountsError as error:
                raise _error(request, error) from None
        with _reported(request, hosts):
            yield hosts


@contextmanager
def _reported(request: pytest.FixtureRequest, hosts: dict[str, Shell] | dict[str, MountedHost]) -> Iterator[None]:
    """Let the test's report know of hosts while they can be asked."""
    known = request.node.stash.setdefault(_HOSTS, {})
    known.update(hosts)
    try:
        yield
    finally:
        for name in hosts:
            del known[name]


def _hosts(item: pytest.Item) -> dict[str, Files]:
    """Return the hosts of a test by name: of our fixtures, however it came to them, and its other arguments."""
    testing = sys.modules.get("apfs.testing.files")
    if testing is None:  # then there is no host in this process
        return {}
    known = item.stash.get(_HOSTS, {})
    arguments: dict[str, object] = getattr(item, "funcargs", {})
    others = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, testing.Files) and not any(value is host for host in known.values())
    }
    return known | others


def _keep(item: pytest.Item, report: pytest.TestReport, name: str, host: Files) -> None:
    """Keep the journal of a host; name the file in JUnit's output, if that is made."""
    from apfs.testing import junit, kept  # noqa: PLC0415 -- see the head of the file

    path, said = kept.journal(item.config.getoption(JOURNALS), item.nodeid, name, host)
    report.sections.append((f"apfs journal file of {name}", said))
    if path is not None:
        item.user_properties.append((junit.JOURNAL, str(path)))


def _draw(item: pytest.Item, report: pytest.TestReport, hosts: dict[str, Files]) -> None:
    """Draw what happened on hosts; name the page in JUnit's output and in that of pytest-html, if these are made."""
    from apfs.testing import junit, kept  # noqa: PLC0415 -- see the head of the file

    page, said = kept.report(item.config.getoption(REPORTS), item.nodeid, hosts)
    report.sections.append(("apfs report", said))
    if page is None:
        return
    item.user_properties.append((junit.REPORT, str(page)))
    html = item.config.getoption("htmlpath", None)
    if html:
        from pytest_html import extras  # noqa: PLC0415 -- the option is its

        url = quote(os.path.relpath(page, Path(html).parent))
        vars(report)["extras"] = [*getattr(report, "extras", []), extras.url(url, name="apfs report")]


def _journal(host: Files) -> str:
    try:
        return host.journal.report()
    except OSError as error:
        return f"cannot be read, the host's server is gone: {error}"


def _wanted(request: pytest.FixtureRequest, most: int) -> _Wanted:
    """Return the scenarios, at most as many as that, and the clock. An indirect parameter overrides the marker."""
    from apfs.testing.mounted import Clock  # noqa: PLC0415 -- see the head of the file

    marker = request.node.get_closest_marker(MARKER)
    scenarios, options = (marker.args, dict(marker.kwargs)) if marker else ((), {})
    if hasattr(request, "param"):
        scenarios = tuple(request.param) if isinstance(request.param, (tuple, list)) else (request.param,)
    clock = options.pop("clock", "manual")
    if options or clock not in get_args(Clock):
        raise _error(request, f"{MARKER} takes scenarios and clock='manual' or 'real', not {marker.kwargs}")
    if len(scenarios) > most or not all(isinstance(scenario, (str, os.PathLike)) for scenario in scenarios):
        raise _error(request, f"expected at most {most} of: name of a scenario, file, TOML text; not {scenarios}")
    return _Wanted(tuple(_located(request, scenario) for scenario in scenarios), clock)


def _located(request: pytest.FixtureRequest, scenario: str | os.PathLike[str]) -> str:
    """Return a scenario with its file, if it is one, found from the directory of the test's own file."""
    is_file = not isinstance(scenario, str) or ("\n" not in scenario and ("/" in scenario or "." in scenario))
    return str(request.path.parent / scenario) if is_file else str(scenario)


def _error(request: pytest.FixtureRequest, reason: object) -> BaseException:
    """Return what ends the set-up of a test with a line that says why, without the traceback of this plugin."""
    return pytest.fail.Exception(f"{request.fixturename}: {reason}", pytrace=False)
