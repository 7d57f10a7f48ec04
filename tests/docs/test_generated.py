"""The generated reference pages are what `docs/generate.py` makes of the tables, and leave nothing out."""

import stat

import pytest

from apfs.host import Host
from apfs.kernel.profile import rows
from apfs.scenario.reader import load
from apfs.testing.files import Shell
from docs import generate


@pytest.mark.parametrize("name", generate.pages())
def test_committed_page_is_up_to_date(name: str) -> None:
    text = (generate.REFERENCE / name).read_text("utf-8")
    assert text == generate.pages()[name], f"run: python docs/generate.py (docs/reference/{name} is not up to date)"


def test_there_are_no_other_pages() -> None:
    assert {path.name for path in generate.REFERENCE.iterdir()} == set(generate.pages())


@pytest.mark.parametrize("scenario", ["default", "kernel-doc", "secure-execution"])
def test_every_file_of_a_host_is_described(scenario: str) -> None:
    host = Host(load(scenario))
    shell = Shell(host)
    shell.echo("extra", "/sys/class/zcrypt/create")
    described = {entry.name for section in generate.SECTIONS for entry in section.entries}
    seen = {
        path.rpartition("/")[2]
        for path, found in shell.find()
        if stat.S_ISREG(found.mode) and not path.startswith(("/dev/vfio/", "/dev/iommu"))
    }
    assert seen - described == set()


def test_diagram_of_the_migration_page_is_the_generated_one() -> None:
    text = (generate.REFERENCE.parent / "migration.md").read_text("utf-8")
    assert generate.diagram() in text


def test_tables_of_kernels_are_up_to_date() -> None:
    text = generate.KERNELS.read_text("utf-8")
    assert text == generate.kernels_page(), "run: python docs/generate.py (docs/kernels.md is not up to date)"
    assert {text.count(f"\n| `{name}` |") for name in rows()} == {2}
