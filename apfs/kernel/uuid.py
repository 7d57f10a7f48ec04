"""UUIDs as text, as the kernel reads them (lib/uuid.c)."""

from __future__ import annotations

import re

UUID_LENGTH = 36
UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
"""Regular expression of a UUID, in either case, without groups."""
_UUID = re.compile(UUID)


def is_uuid(text: str) -> bool:
    """Whether a text is a UUID and nothing else."""
    return _UUID.fullmatch(text) is not None
