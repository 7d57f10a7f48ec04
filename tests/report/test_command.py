"""`apfs report` on real mounts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import UUID, apfs, create_mdev, sh
from tests.mounted.test_monitor import on_terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Mounter = Callable[..., Path]


def data(page: str) -> dict[str, Any]:
    """Return what is in a page."""
    (text,) = page.split('<script type="application/json" id="data">')[1].split("</script>")[:1]
    found: dict[str, Any] = json.loads(text)
    return found


def test_report_of_a_mount(mount: Mounter, tmp_path: Path) -> None:
    host = mount("default", "--clock", "manual")
    create_mdev(host)
    sh('echo -5 > "$1/apmask"; ! echo 999 > "$1/ap_domain"', str(host / "sys/bus/ap"))
    page = tmp_path / "report.html"
    assert apfs("report", "-o", str(page), str(host)).stdout == ""
    (story,) = data(page.read_text("utf-8"))["hosts"]
    assert story["note"] == ""
    assert story["title"] == host.name
    assert [step["what"] for step in story["steps"]] == [f"create ← {UUID}", "apmask ← -5", "ap_domain ← 999"]
    assert list(story["steps"][0]["patch"]["mdevs"]) == [UUID]
    assert list(story["steps"][1]["patch"]["cards"]) == ["05"]
    assert story["steps"][2]["why"] == "EINVAL: domain 999 is not in 0..255"


def test_several_mounts_or_their_journals_and_standard_output(mount: Mounter, tmp_path: Path) -> None:
    hosts = [mount("migration-source"), mount("migration-target"), mount("empty")]
    assert apfs("migrate", *map(str, hosts[:2]), UUID).returncode == 0
    found = data(apfs("report", *map(str, hosts)).stdout)
    assert [story["title"] for story in found["hosts"]] == [host.name for host in hosts]
    steps = [(host, found["hosts"][host]["steps"][index]["what"]) for host, index in found["order"]]
    sent, taken = steps.index((0, "migration_state ← STOP_COPY")), steps.index((1, "migration_state ← RUNNING"))
    assert sent < taken < steps.index((0, "guest ← 0"))
    journals = [tmp_path / f"{host.name}.json" for host in hosts]
    for host, journal in zip(hosts, journals, strict=True):
        journal.write_text(apfs("journal", "--json", str(host)).stdout)
    assert data(apfs("report", *map(str, journals)).stdout) == found


def test_report_of_a_journal(mount: Mounter, tmp_path: Path) -> None:
    host = mount("default")
    sh('echo -5 > "$1"', str(host / "sys/bus/ap/apmask"))
    file = tmp_path / "bug.json"
    file.write_text(apfs("journal", "--json", str(host)).stdout)
    (story,) = data(apfs("report", str(file)).stdout)["hosts"]
    assert (story["title"], story["facts"]["scenario"], story["note"]) == ("bug", "default", "")
    assert list(story["steps"][0]["patch"]["cards"]) == ["05"]
    piped = data(sh('"$2" -m apfs report <(cat "$1")', str(file), sys.executable).stdout)
    assert piped["hosts"] == [story | {"title": "journal"}]
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    assert "no report is possible: it has no header" in apfs("report", str(file), status=2).stderr
    file.write_text("{}\n")
    assert apfs("report", str(file), status=2).stderr.startswith(f"apfs: {file}: line 1 is not ")


@pytest.mark.parametrize("command", ["report", "replay"])
def test_what_is_no_journal(tmp_path: Path, command: str) -> None:
    file = tmp_path / "x"
    advice = ": use the output of `apfs journal --json`\n"
    for content in (b"     1  store      /sys/bus/ap/apmask '-5\\n'\n", b"\x7fELF\xd0", b"{\n" + b"x" * 5000):
        file.write_bytes(content)
        said = apfs(command, str(file), status=2).stderr
        assert said.startswith(f"apfs: {file}: ")
        assert said.endswith(advice)
        assert len(said) < 500


def test_names_of_any_bytes_and_locales_of_any_kind(mount: Mounter, tmp_path: Path) -> None:
    host = mount("default")
    file = tmp_path / os.fsdecode(b"bug\xff.json")
    file.write_text(apfs("journal", "--json", str(host)).stdout)
    apfs("report", "-o", str(tmp_path / "page.html"), str(file))
    assert "<title>bug?</title>" in (tmp_path / "page.html").read_text("utf-8")
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    said = subprocess.run([sys.executable, "-m", "apfs", "report", file], env=env, capture_output=True, check=True)
    assert said.stdout == (tmp_path / "page.html").read_bytes()


def test_wrong_usage(mount: Mounter, tmp_path: Path) -> None:
    host = mount("empty")
    assert "is not an apfs mount" in apfs("report", str(tmp_path), status=2).stderr
    assert "has no mediated device" in apfs("report", f"{host}/guests/{UUID}", status=2).stderr
    said = apfs("report", str(host), "-o", str(tmp_path / "no/report.html"), status=1).stderr
    assert said == f"apfs: {tmp_path}/no/report.html: No such file or directory\n"
    assert "use --output FILE" in on_terminal("report", str(host))
    advice = "give a mount, or a file with the output of `apfs journal --json`"
    assert apfs("report", "x.json", status=2).stderr == f"apfs: x.json does not exist: {advice}\n"
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert apfs("report", str(loop), status=2).stderr == f"apfs: {loop}: too many levels of symbolic links\n"
    said = apfs("report", str(host), "-o", str(loop), status=1).stderr
    assert said == f"apfs: {loop}: Too many levels of symbolic links\n"
    assert "it is empty" in apfs("report", "", status=2).stderr
    assert "it is empty" in apfs("report", str(host), "-o", "", status=2).stderr


@pytest.mark.parametrize("command", ["report", "replay"])
def test_standard_input_that_is_closed_is_empty(command: str) -> None:
    said = sh('"$1" -m apfs "$2" - <&-', sys.executable, command, status=2).stderr
    assert "it has no header, which `apfs journal --json` prints" in said
    assert "Traceback" not in said


def test_progress_on_a_terminal_only(mount: Mounter, tmp_path: Path) -> None:
    source, target = mount("migration-source"), mount("migration-target")
    shown = on_terminal("report", str(source), "-o", str(tmp_path / "report.html"))
    assert f"replaying {source}"[:60] in shown
    assert shown.endswith("\x1b[2K")  # nothing of it stays
    shown = on_terminal("migrate", str(source), str(target), UUID)
    assert f"migrating {UUID}" in shown
    assert shown.endswith("bytes\n")
    assert apfs("migrate", "--check", str(target), str(source), UUID, status=None).stderr == ""
    file = tmp_path / "journal.json"
    file.write_text(apfs("journal", "--json", str(source)).stdout)
    shown = on_terminal("replay", str(file))
    assert f"replaying {file}"[:60] in shown
    assert re.search(r"journal\.json: the same; requests: \d+, records: \d+\n$", shown)
    assert apfs("replay", str(file)).stderr == ""
