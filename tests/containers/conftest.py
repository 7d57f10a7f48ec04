"""An engine with a storage of its own, and the image that the Containerfile makes, built once for all tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rooms import Room
from tests.tools.conftest import need
from tests.vmm.releases import installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
CONTAINERFILE = "mount-examples/containers/Containerfile"
# pip fetches packages for the Python of this machine, so that the image must have the same one.
VERSION, SUITE = ("13", "trixie") if installed() == "trixie" else ("12", "bookworm")
BASE, IMAGE = f"debian:{VERSION}-slim", "localhost/apfs:latest"
# Building an image takes a minute or so; this only keeps a hanging test from hanging the run.
TIMEOUT = 600
# The engine's settings for a machine where nothing but that works; they say nothing of what containers may do.
SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "none"
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""
USER = 61234
SHARED_MEMORY = "/dev/shm"  # noqa: S108 -- a mount point, no temporary file of ours


class Engine:
    """podman with a storage of its own."""

    def __init__(self, state: Path, prefix: tuple[str, ...] = ()) -> None:
        (state / "containers.conf").write_text(SETTINGS)
        self._state = state
        self._prefix = prefix
        self.command = f"podman --storage-driver=overlay --root={state}/s --runroot={state}/r"
        self.env = {**os.environ, "CONTAINERS_CONF": f"{state}/containers.conf", "ENGINE": self.command}

    def __call__(self, *arguments: str, status: int | None = 0) -> str:
        """Run a command of the engine and return what it prints."""
        return self.script(*self.command.split(), *arguments, status=status)

    def script(self, *command: str, status: int | None = 0) -> str:
        """Run a program that runs the engine, as $ENGINE, itself."""
        result = subprocess.run(
            [*self._prefix, *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=self.env,
            cwd=ROOT,
        )
        assert status is None or result.returncode == status, (command, result.stdout, result.stderr[-3000:])
        return result.stdout

    def close(self) -> None:
        """End all that runs; the rest goes with the directory."""
        self("pod", "rm", "--all", "--force", status=None)
        self("rm", "--all", "--force", status=None)
        # Of an ordinary user's engine a process stays, which holds the user namespace.
        self("system", "migrate", status=None)
        # podman 5 leaves its storage mounted on itself.
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            place = Path(line.split()[1])
            if place.is_relative_to(self._state):
                subprocess.run(["umount", place], check=False)  # some end by themselves meanwhile


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Return an engine that root runs."""
    if os.geteuid():
        pytest.skip("the tests of containers make images and namespaces as root")
    need("podman", "runc", "catatonit", "newuidmap", "mmdebstrap")
    # podman insists on a short path for its state.
    with tempfile.TemporaryDirectory(prefix="p") as state, contextlib.closing(Engine(Path(state))) as made:
        yield made


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes a directory of all packages that pip needs: pip in a container has no settings.

    `download` gets pyfuse3 as source, with what its build needs; `wheel` has it, and apfs itself, built.
    """

    def make(verb: str) -> Path:
        place = tmp_path_factory.mktemp(verb)
        place.chmod(0o755)  # pip runs as another user too
        backends = ["setuptools>=78", "setuptools_scm>=8", "Cython", "wheel"] if verb == "download" else []
        command = [sys.executable, "-m", "pip", verb, "--quiet", "--dest" if verb == "download" else "--wheel-dir"]
        subprocess.run([*command, str(place), f"{ROOT}[mount]", *backends], check=True, timeout=TIMEOUT)
        return place

    return make


@pytest.fixture(scope="session")
def base(engine: Engine) -> str:
    """Have the image debian:12-slim or debian:13-slim, made of Debian's packages: there may be no registry in reach."""
    archive = ROOT / f".cache/debian-{VERSION}.tar"
    if not archive.exists():
        archive.parent.mkdir(exist_ok=True)
        part = archive.with_suffix(f".{os.getpid()}.tar")
        # What the image of that name leaves out is left out here too.
        left_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "--skip=output/dev"]
        command += [*left_out, "--dpkgopt=force-unsafe-io", SUITE, str(part)]
        subprocess.run(command, check=True, timeout=TIMEOUT)
        part.rename(archive)
    engine("import", str(archive), BASE)
    return BASE


@pytest.fixture(scope="session")
def image(engine: Engine, base: str, wheels: Callable[[str], Path]) -> str:
    """Build the image as the Containerfile says."""
    where = [f"--volume={wheels('download')}:/wheels:ro", "--build-arg=PIP_NO_INDEX=1"]
    where += ["--build-arg=PIP_FIND_LINKS=/wheels", f"--build-arg=BASE={base}"]
    command = ["build", "--isolation=chroot", "--network=host", *where, "--file", CONTAINERFILE]
    engine(*command, f"--tag={IMAGE}", ".")
    return IMAGE


@pytest.fixture(scope="session")
def rootless(engine: Engine, image: str) -> Iterator[Engine]:
    """Return an engine that an ordinary user runs, with the image in its storage.

    The user exists in a private mount namespace only.
    """
    with tempfile.TemporaryDirectory(prefix="p") as state, Room(users=False) as room:
        place = Path(state)
        lines = {
            "passwd": f"apfs-test:x:{USER}:{USER}::{state}:/bin/sh",
            "group": f"apfs-test:x:{USER}:",
            "subuid": "apfs-test:300000:65536",
            "subgid": "apfs-test:300000:65536",
        }
        for name, line in lines.items():
            real = Path("/etc", name)
            (place / name).write_text(f"{real.read_text() if real.exists() else ''}{line}\n")
            real.touch()
            room.run("mount", "--bind", str(place / name), f"/etc/{name}")
        # podman has its locks there, and a machine may let nobody but root write to its own.
        room.run("mount", "--types=tmpfs", "--options=mode=1777", "none", SHARED_MEMORY)
        archive = place / "image.tar"
        engine("save", "--quiet", f"--output={archive}", image)
        archive.chmod(0o644)
        prefix = room.enter("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "env")
        os.chown(place, USER, USER)
        # What belongs to the user's other ids only root can remove; the directory goes with it.
        with contextlib.closing(Engine(place, (*prefix, f"HOME={state}", f"XDG_RUNTIME_DIR={state}"))) as made:
            made("load", "--quiet", f"--input={archive}")
            yield made
