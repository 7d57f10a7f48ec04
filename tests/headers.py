"""The installed headers of the kernel, as the compiler reads them. CPATH can name a directory with others."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("version.h", "vfio.h", "iommufd.h", "seccomp.h", "audit.h", "filter.h", "openat2.h", "prctl.h", "sched.h")
INCLUDES = "".join(f"#if __has_include(<linux/{name}>)\n#include <linux/{name}>\n#endif\n" for name in NAMES)


@cache
def headers() -> str:
    """Return the text of the headers, preprocessed but with its macros."""
    command = ["gcc", "-E", "-P", "-dD", "-x", "c", "-"]
    return subprocess.run(command, check=True, input=INCLUDES, capture_output=True, text=True).stdout


def evaluate(tmp_path: Path, expressions: dict[str, str]) -> dict[str, int]:
    """Let the compiler say what expressions are worth."""
    source = (
        "#define _GNU_SOURCE\n"
        + INCLUDES
        + "#include <stddef.h>\n#include <stdio.h>\n#include <sys/stat.h>\n#include <sys/syscall.h>\nint main(void) {\n"
    )
    source += "".join(
        f'printf("{name} %llu\\n", (unsigned long long)({text}));\n' for name, text in expressions.items()
    )
    (tmp_path / "values.c").write_text(source + "return 0; }\n")
    subprocess.run(["gcc", "-o", tmp_path / "values", tmp_path / "values.c"], check=True)
    output = subprocess.run([tmp_path / "values"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}
