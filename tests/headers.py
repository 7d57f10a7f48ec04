"""The installed headers of the kernel, as the compiler reads them. CPATH can name a directory with others.

Those of other architectures are compiled for this machine: numbers and the layouts of 64-bit programs are the same.
"""

from __future__ import annotations

import subprocess
from functools import cache
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


FOREIGN = {
    "x86_64": ("x86_64-linux-gnu", ("__x86_64__",)),
    "x32": ("x86_64-linux-gnu", ("__x86_64__", "__ILP32__")),
    "i386": ("x86_64-linux-gnu", ("__i386__",)),
    "aarch64": ("aarch64-linux-gnu", ("__aarch64__",)),
    "arm": ("arm-linux-gnueabihf", ("__arm__", "__ARM_EABI__")),
    "s390x": ("s390x-linux-gnu", ("__s390__", "__s390x__")),
    "riscv64": ("riscv64-linux-gnu", ("__riscv",)),
}
"""Where the headers of architectures are, and what their compilers define."""
_FOREIGN_NAMES = ("unistd", "stat", "fcntl", "resource")


def foreign(tmp_path: Path, architecture: str, names: list[str]) -> dict[str, int]:
    """Let the compiler say what expressions are worth on an architecture; macros unknown there are left out."""
    triplet, defined = FOREIGN[architecture]
    # Debian 12 has packages for cross compilers, Debian 13 has one for all architectures.
    places = (Path("/usr", triplet, "include"), Path("/usr/include", triplet))
    own = [place for place in places if (place / "asm").exists()]
    assert own, f"no headers of Linux for {architecture}: run tests/run.sh, which installs what is missing"
    macros = {macro for _, macros in FOREIGN.values() for macro in macros}
    options = [*(f"-U{macro}" for macro in sorted(macros)), *(f"-D{macro}" for macro in defined)]
    options += ["-nostdinc", *(f"-isystem{place}" for place in (*own, "/usr/include"))]
    source = "".join(f"#include <asm/{name}.h>\n" for name in _FOREIGN_NAMES)
    source += "#include <linux/seccomp.h>\n#include <linux/vfio.h>\n"
    source += "int printf(const char *, ...);\nint main(void) {\n"
    for name in names:
        line = f'printf("%llu {name}\\n", (unsigned long long)({name}));\n'
        source += f"#ifdef {name}\n{line}#endif\n" if name.isidentifier() else line
    (tmp_path / "foreign.c").write_text(source + "return 0; }\n")
    subprocess.run(["gcc", *options, "-o", tmp_path / "foreign", tmp_path / "foreign.c"], check=True)
    output = subprocess.run([tmp_path / "foreign"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for value, name in (line.split(" ", 1) for line in output.splitlines())}
