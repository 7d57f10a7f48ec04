"""The plugin's file: compiled once, kept where only root or the user can have put it."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest

from apfs.vmm import build

if TYPE_CHECKING:
    from pathlib import Path

BUILD = (
    "import sys; from pathlib import Path; from apfs.vmm import build; build.SYSTEM_CACHE = Path(sys.argv[1]);"
    "print(build.plugin())"
)
LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"


def names(directory: Path) -> list[str]:
    """Return the names in a directory."""
    return [entry.name for entry in directory.iterdir()]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The system's and the user's cache directory, which are not there yet, and nothing else that could decide."""
    monkeypatch.setattr(build, "SYSTEM_CACHE", tmp_path / "var/cache/apfs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    for name in ("APFS_QEMU_PLUGIN", "CC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "var/cache/apfs", tmp_path / "home/.cache/apfs"


def test_it_is_compiled_once(caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = build.plugin()
    assert made == caches[0] / build.file_name()
    assert names(caches[0]) == [made.name]
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build.plugin() == made


def test_it_can_be_loaded_and_says_nothing_to_what_is_no_qemu(caches: tuple[Path, Path]) -> None:
    assert caches
    done = subprocess.run([sys.executable, "-c", LOAD, build.plugin()], check=True, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_compiler_has_nothing_to_warn_of(tmp_path: Path) -> None:
    sources = map(str, build.SOURCE.glob("*.c"))
    strict = (*build.FLAGS, "-Wextra", "-Werror")
    subprocess.run(["cc", *strict, "-o", str(tmp_path / "plugin.so"), *sources], check=True)


def test_users_compile_what_root_has_not(caches: tuple[Path, Path]) -> None:
    caches[0].parent.parent.mkdir()
    caches[0].parent.touch()  # no directory can be made there, as for users in the real place
    made = build.plugin()
    assert made.parent == caches[1]


def test_another_source_is_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = build.file_name()
    for source in build.SOURCE.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCE", tmp_path)
    assert build.file_name() == before
    with (tmp_path / "plugin.c").open("a") as source_file:
        source_file.write("\n")
    assert build.file_name() != before


def test_many_at_once(caches: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", BUILD, str(caches[0])]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate()[0].strip() for process in processes}
    made = caches[0] / build.file_name()
    assert answers == {str(made)}
    assert names(caches[0]) == [made.name]
    subprocess.run([sys.executable, "-c", LOAD, made], check=True)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_others_can_write_is_not_used(caches: tuple[Path, Path], what: str) -> None:
    made = build.plugin()
    foul = made if what == "file" else made.parent
    foul.chmod(foul.stat().st_mode | stat.S_IWOTH)
    if what == "file":
        assert build.plugin() == made  # compiled again, over it
        assert build.is_safe(made)
    else:
        assert build.plugin().parent == caches[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_others_is_not_used(caches: tuple[Path, Path]) -> None:
    made = build.plugin()
    os.chown(made.parent, 65534, 65534)
    assert build.plugin().parent == caches[1]


def test_directories_are_open_whatever_the_umask(caches: tuple[Path, Path]) -> None:
    before = os.umask(0o077)
    try:
        made = build.plugin()
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o755
    assert stat.S_IMODE(caches[0].stat().st_mode) == 0o755


def test_no_compiler(caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build.PluginError, match=r"no no-such-compiler: apt install gcc libc6-dev"):
        build.plugin()
    assert names(caches[0]) == []


def test_compiler_that_fails(caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'vfio.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(build.PluginError, match=r"does not compile: vfio\.h: No such file"):
        build.plugin()
    assert names(caches[0]) == []


def test_no_place(caches: tuple[Path, Path]) -> None:
    for cache in caches:
        cache.parent.parent.mkdir()
        cache.parent.touch()
    with pytest.raises(build.PluginError, match=r"no directory for QEMU's plugin: .*var/cache/apfs: .*; .*home/"):
        build.plugin()


def test_a_user_without_a_home(caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a number nobody has given a name."""

    def nobody(number: int) -> NoReturn:
        raise KeyError(number)

    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert build.caches() == [caches[0]]


def test_given_file(caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = tmp_path / "given.so"
    monkeypatch.setenv("APFS_QEMU_PLUGIN", str(given))
    with pytest.raises(build.PluginError, match=r"APFS_QEMU_PLUGIN: no such file: .*given\.so"):
        build.plugin()
    given.touch()
    assert build.plugin() == given
    assert not caches[0].exists()
