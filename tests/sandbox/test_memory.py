"""Errnos that depend on the caller's memory and descriptors, in the kernel's order of checks."""

from __future__ import annotations

from tests.sandbox.conftest import run
from tests.sandbox.programs import memory


def test_memory_that_cannot_be_read_or_written() -> None:
    assert run(memory.edges).stdout.splitlines() == [
        "null EFAULT EFAULT",
        "edge 0 ok",
        "edge 1 EFAULT",
        "readonly EFAULT",
        "feature EFAULT 2",
        "name EFAULT EINVAL ENODEV",
        "irqs EFAULT EFAULT",
        "size 16 EFAULT",
        "size 12 ok",
        "encoded ok ENOTTY",
    ]


def test_descriptors_in_arguments() -> None:
    # A container is opened for reading only.
    assert run(memory.descriptors, options=("--nodes", "exact")).stdout.split() == [
        *("EBADF", "EBADF", "EBADFD", "EBADFD", "EBADFD"),
        *("ok", "EINVAL"),
        *("EBADF", "EINVAL", "EINVAL", "EINVAL"),
    ]


def test_descriptors_that_are_paths_only_are_not_open() -> None:
    assert run(memory.paths_only).stdout.splitlines() == ["EBADF EBADF"] * 3


def test_a_file_that_cannot_be_told_of_is_withdrawn_but_the_state_stays() -> None:
    """The descriptor is looked for first, so that without one it is EMFILE."""
    lines = run(memory.file_that_cannot_be_told_of).stdout.splitlines()
    assert lines == ["EFAULT 3 True", "1 -1 -1", "EMFILE 3"]


def test_a_free_descriptor_is_looked_for_before_the_container_and_the_driver() -> None:
    lines = run(memory.no_free_descriptor).stdout.splitlines()
    assert lines == ["EINVAL EMFILE ENODEV", "ok ok", "EMFILE EINVAL"]


def test_ioctls_of_other_files_and_other_types_are_the_kernels() -> None:
    assert run(memory.other_files).stdout.splitlines() == [
        "ENOTTY EBADF",
        "EBADF",
        "EINVAL EINVAL",
        "(5,)",
        "ENOTTY ENOTTY",
        "EINVAL",
    ]
