"""Work that is counted, not timed."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def calls(run: Callable[[], object]) -> int:
    """Count the calls of Python functions, without those of garbage collection: Hypothesis lets it call one."""
    count, collecting = 0, gc.isenabled()

    def called(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    gc.disable()
    sys.setprofile(called)
    try:
        run()
    finally:
        sys.setprofile(None)
        if collecting:
            gc.enable()
    return count
