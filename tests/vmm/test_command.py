"""The command `apfs qemu`."""

from __future__ import annotations

from apfs.vmm import build
from tests.conftest import apfs


def test_arguments_go_to_qemu(system_qemu: str) -> None:
    version = apfs("qemu", "--", "-version")
    assert version.stdout.startswith("QEMU emulator version ")
    assert apfs("qemu", "--qemu", system_qemu, "--", "-version").stdout == version.stdout
    assert apfs("qemu", "--", "-M", "none", "-help").stdout.startswith("QEMU emulator version ")


def test_status_is_that_of_qemu() -> None:
    refused = apfs("qemu", "--", "-M", "s390-ccw-virtio", "-no-such-option", status=1)
    assert refused.stderr == "qemu-system-s390x: -no-such-option: invalid option\n"


def test_build_prints_the_file_of_the_plugin() -> None:
    assert apfs("qemu", "--build").stdout == f"{build.plugin()}\n"


def test_what_is_wrong_is_told_in_one_line() -> None:
    missing = apfs("qemu", "--qemu", "/usr/bin/true", "--", "-M", "s390-ccw-virtio", status=2)
    assert missing.stderr.startswith("apfs: /usr/bin/true was built without plugins")
    assert missing.stderr.count("\n") == 1
    assert "--build takes no arguments" in apfs("qemu", "--build", "--", "-S", status=2).stderr
