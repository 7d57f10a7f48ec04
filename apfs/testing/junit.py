"""JUnit output with the names of saved files of failed tests, where CI systems look for them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from pathlib import Path

REPORT, JOURNAL = "apfs_report", "apfs_journal"
"""Properties of a test: its page, and a kept journal."""


def attach(file: Path) -> None:
    """Add to the output of each test in a file of pytest's a line for each file that its properties name.

    Jenkins' plugin JUnit Attachments and GitLab make links of lines `[[ATTACHMENT|path]]` in a test's `system-out`;
    neither looks at properties. GitLab takes the first line only, and there may be just one such element.
    """
    tree = ET.parse(file)  # noqa: S314 -- pytest has just made it
    attached = False
    for case in tree.iter("testcase"):
        named = [(found.get("name"), found.get("value")) for found in case.iterfind("properties/property")]
        lines = [f"[[ATTACHMENT|{path}]]" for kind in (REPORT, JOURNAL) for name, path in named if name == kind]
        if not lines:
            continue
        output = case.find("system-out")
        if output is None:
            output = ET.SubElement(case, "system-out")
        output.text = "\n".join([*(output.text or "").splitlines(), *lines, ""])
        attached = True
    if attached:
        tree.write(file, encoding="utf-8", xml_declaration=True)
