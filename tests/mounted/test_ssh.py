"""Migration between machines over ssh, with OpenSSH's own server on the loopback device."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import TIMEOUT, UUID, apfs
from tests.mounted.test_remote import guest
from tests.rooms import Room
from tests.tools.conftest import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {place}/host
AuthorizedKeysFile {place}/user.pub
AuthenticationMethods publickey
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""


def helpers(sshd: Path) -> str:
    """Return configuration that says where the programs are that sshd runs since OpenSSH 9.8 and 10."""
    programs = sshd.parents[1] / "lib/openssh"
    names = {"SshdSessionPath": programs / "sshd-session", "SshdAuthPath": programs / "sshd-auth"}
    return "".join(f"{name} {program}\n" for name, program in names.items() if program.exists())


@pytest.fixture(scope="module")
def sshd() -> Path:
    """Find the server, or get it without installing it: a machine that runs tests is not to be logged in to."""
    installed = shutil.which("sshd", path="/usr/sbin")
    if installed:
        return Path(installed)
    release, place = platform.freedesktop_os_release()["VERSION_CODENAME"], ROOT / ".cache/sshd"
    place.parent.mkdir(exist_ok=True)
    architecture = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout
    fetch = ROOT / "mount-examples/fetch-debian.sh"
    subprocess.run([fetch, place, release, architecture.strip(), "openssh-server"], check=True, timeout=600)
    return place / "root/usr/sbin/sshd"


@contextlib.contextmanager
def privileges(place: Path) -> Iterator[tuple[str, ...]]:
    """Yield what comes before the command of the server. Root's gives up privileges to a user who need not be there."""
    if os.geteuid():
        yield ()
        return
    files = {
        "passwd": Path("/etc/passwd").read_text() + "sshd:x:61235:65534::/run/sshd:/usr/sbin/nologin\n",
        "shadow": "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n",
    }
    with Room(users=False) as room:
        for name, text in files.items():
            (place / name).write_text(text)
            room.run("mount", "--bind", str(place / name), f"/etc/{name}")
        room.run("mount", "--types=tmpfs", "none", "/run")
        room.run("mkdir", "--mode=0755", "/run/sshd")
        yield room.enter()


@pytest.fixture
def hosts(mount: Callable[..., Path]) -> tuple[Path, Path]:
    """Mount a source and a target."""
    return mount("migration-source"), mount("migration-target")


@pytest.fixture
def login(sshd: Path, hosts: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """Run a server with keys of its own; return the command that logs in as the tests' user, who sees the hosts."""
    del hosts
    need("ssh", "ssh-keygen")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "config").write_text(CONFIG.format(place=tmp_path, port=port) + helpers(sshd))
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host.pub').read_text()}")
    client: tuple[str, ...] = (
        "ssh",
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        f"UserKnownHostsFile={tmp_path / 'known'}",
    )
    client += ("-o", "IdentitiesOnly=yes", "-i", str(tmp_path / "user"), "-p", str(port))
    with privileges(tmp_path) as prefix:
        command = [*prefix, str(sshd), "-D", "-e", "-f", str(tmp_path / "config")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = [process.stderr.readline()]
            try:
                assert said == [f"Server listening on 127.0.0.1 port {port}.\n"], said + process.stderr.readlines()
                yield *client, f"{getpass.getuser()}@127.0.0.1"
            finally:
                process.terminate()
                process.communicate(timeout=TIMEOUT)


def test_there_and_back(login: tuple[str, ...], hosts: tuple[Path, Path]) -> None:
    """Back because the target asks for it. Nothing gets lost of what either end prints."""
    source, target = hosts
    there = (*login, "env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "apfs", "migrate")
    asked = apfs("migrate", "--check", "--send", str(source), UUID, "--", *there, "--receive", str(target), UUID)
    assert asked.stdout == f"{UUID}: compatible\n"
    sent = apfs("migrate", "--send", str(source), UUID, "--", *there, "--receive", str(target), UUID)
    assert (sent.stdout, sent.stderr) == (f"{UUID}: migrated, 72 bytes\n", f"{UUID}: received, 72 bytes\n")
    assert (guest(source), guest(target)) == (None, "RUNNING")
    fetched = apfs("migrate", "--receive", str(source), UUID, "--", *there, "--send", str(target), UUID)
    assert (fetched.stdout, fetched.stderr) == (f"{UUID}: received, 72 bytes\n", f"{UUID}: migrated, 72 bytes\n")
    assert (guest(source), guest(target)) == ("RUNNING", None)


def test_a_login_that_is_refused(login: tuple[str, ...], hosts: tuple[Path, Path]) -> None:
    """What ssh says is seen, and the guest goes on."""
    wrong = (*login[:-1], "nobody-of-this-name@127.0.0.1", "apfs", "migrate", "--receive", str(hosts[1]))
    sent = apfs("migrate", "--send", str(hosts[0]), UUID, "--", *wrong, status=2)
    assert "Permission denied (publickey)" in sent.stderr
    assert "Traceback" not in sent.stderr
    assert guest(hosts[0]) == "RUNNING"
