"""The QEMU plugin as a shared object: compiled at first use, then cached.

One object works with all supported versions of QEMU, because it determines at run time which one loads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import subprocess
from pathlib import Path

from apfs.mounts import places
from apfs.mounts.interrupts import interrupts

SOURCE = Path(__file__).parent / "plugin"
SYSTEM_CACHE = Path("/var/cache/apfs")
"""Where root keeps it, for all users: libvirt gives each domain a cache directory of its own."""

FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing", "-Wall")
_PREFIX = ".qemu-plugin-"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class PluginError(Exception):
    """The plugin is not available; the message says why, and what to do."""


def file_name() -> str:
    """Return the name of the object made from this source for this machine."""
    digest = hashlib.sha256(" ".join((platform.machine(), *FLAGS)).encode())
    for source in sorted(SOURCE.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return f"qemu-plugin-{digest.hexdigest()[:16]}.so"


def caches() -> list[Path]:
    """Return the directories that may have it, and that may keep it if they can be written: best first."""
    own = os.environ.get("XDG_CACHE_HOME", "")
    if not own.startswith("/"):
        own = os.path.expanduser("~/.cache")  # noqa: PTH111 -- stays as it is if this user has no home
    return [SYSTEM_CACHE, *([Path(own, "apfs")] if own.startswith("/") else [])]


def is_safe(path: Path) -> bool:
    """Whether a file exists that only root or this user can have written, in a directory that only they can write."""
    try:
        found = (path.stat(), path.parent.stat())
    except OSError:
        return False
    return all(entry.st_uid in (0, os.geteuid()) and not entry.st_mode & _OTHERS_WRITE for entry in found)


def compile_into(directory: Path) -> Path:
    """Compile the plugin and return its file, which appears in the directory complete, in one step.

    Raises OSError if the directory cannot be written, PluginError if there is no compiler or it fails.
    """
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)  # whatever the umask is: others use what root has compiled
    target = directory / file_name()
    with places.directory(_PREFIX, str(directory)) as made:
        fresh = made / target.name
        _compile(fresh)
        fresh.chmod(0o755)
        fresh.replace(target)
    return target


def _compile(output: Path) -> None:
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise PluginError(
            f"QEMU's plugin has to be compiled once, and there is no {compiler}: "
            "apt install gcc libc6-dev, or set APFS_QEMU_PLUGIN to a compiled one"
        )
    sources = [str(source) for source in sorted(SOURCE.glob("*.c"))]
    command = [compiler, *FLAGS, "-o", str(output), *sources]
    with interrupts.heeded():
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise PluginError(f"QEMU's plugin does not compile: {done.stderr.decode(errors='replace').strip()}")


def plugin() -> Path:
    """Return the file of the plugin, compiled if it is not there yet. Raises PluginError."""
    given = os.environ.get("APFS_QEMU_PLUGIN")
    if given:
        if not Path(given).is_file():
            raise PluginError(f"APFS_QEMU_PLUGIN: no such file: {given}")
        return Path(given).absolute()
    name = file_name()
    for directory in caches():
        if is_safe(directory / name):
            with contextlib.suppress(OSError):
                places.clear(_PREFIX, str(directory))
            return directory / name
    failures = []
    for directory in caches():
        try:
            made = compile_into(directory)
        except OSError as error:
            failures.append(f"{directory}: {error.strerror}")
            continue
        if is_safe(made):
            return made
        made.unlink()
        failures.append(f"{directory}: others can write it")
    raise PluginError(f"no directory for QEMU's plugin: {'; '.join(failures)}")
