"""Number grammars of sysfs stores (lib/kstrtox.c and lib/vsprintf.c in Linux).

They differ from each other, between kernels, and from Python's `int()`, and scripts depend on the differences. All take
the text of one write, already truncated at its first NUL, and raise `KernelError`.
"""

import errno
import re
from typing import Literal

from apfs.errors import KernelError
from apfs.kernel.profile import DEFAULT, Profile

_U64 = 1 << 64
# lib/ctype.c also counts the Latin-1 no-break space as white space.
SPACE = " \t\n\v\f\r\xa0"
_UNSIGNED = re.compile(r"\+?(?:0[xX]([0-9a-fA-F]+)|0([0-7]+)|(0|[1-9][0-9]*))")
# Nearly all texts are like this, and fit into 32 bits: recognizing them first takes half the time.
_COMMON = re.compile(r"(?:0|[1-9][0-9]{0,8})\n?\Z")
# The bases of the three groups.
_BASES = (0, 16, 8, 10)
_SCAN_D = re.compile(r"-?[0-9]+", re.ASCII)
_SCAN_LLU = re.compile(r"[0-9]+", re.ASCII)
_SCAN_I = re.compile(r"(?P<sign>-?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<oct>0[0-7]*)|(?P<dec>[1-9][0-9]*))", re.ASCII)


def kstrtoul(text: str, bits: Literal[32, 64] = 64) -> int:
    """Unsigned number, base by prefix: decimal, `0x` hex, leading-`0` octal (kstrtoul with base 0).

    One leading `+` and one trailing newline are allowed. EINVAL for anything else, ERANGE above `bits` (64, or 32 for
    kstrtouint). That 64 bits are not enough is noticed while digits are read, hence before trailing junk.
    """
    if _COMMON.match(text):
        return int(text)
    found = _UNSIGNED.match(text)
    if found:
        group = found.lastindex or 0
        value = int(found[group], _BASES[group])
        if value >= _U64:
            raise KernelError(errno.ERANGE, f"{_shown(text)} does not fit into 64 bits")
        if text[found.end() :] in ("", "\n"):
            if value >> bits:
                raise KernelError(errno.ERANGE, f"{_shown(text)} does not fit into {bits} bits")
            return value
    raise KernelError(errno.EINVAL, f"{_shown(text)} is not a number (decimal, 0x hex or 0 octal, nothing around it)")


def scan_d(text: str, kernel: Profile = DEFAULT) -> int:
    """Signed 32-bit decimal as `sscanf("%d")` reads it: leading white space and trailing text do not matter."""
    found = _SCAN_D.match(text.lstrip(SPACE))
    if not found:
        raise KernelError(errno.EINVAL, f"{_shown(text)} does not start with a decimal number")
    return _to_int(int(found[0]), kernel)


def scan_i(text: str, kernel: Profile = DEFAULT) -> int:
    """Signed 32-bit number as `sscanf("%i")` reads it: like `scan_d`, but the prefix chooses the base."""
    found = _SCAN_I.match(text.lstrip(SPACE))
    if not found:
        raise KernelError(errno.EINVAL, f"{_shown(text)} does not start with a number")
    value = int(found["hex"], 16) if found["hex"] else int(found["oct"], 8) if found["oct"] else int(found["dec"])
    return _to_int(-value if found["sign"] else value, kernel)


def scan_llu(text: str, kernel: Profile = DEFAULT) -> int:
    """Unsigned 64-bit decimal as `sscanf("%llu")` reads it: no sign, otherwise as `scan_d`."""
    found = _SCAN_LLU.match(text.lstrip(SPACE))
    if not found:
        raise KernelError(errno.EINVAL, f"{_shown(text)} does not start with a decimal number")
    return simple_strtoull(found[0], kernel)


def simple_strtoull(digits: str, kernel: Profile = DEFAULT) -> int:
    """Value of digits without a sign, whose base the prefix chooses; from 2**64 on as `kernel` has it."""
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
    return _limited(int(digits, base), kernel)


def kstrtobool(text: str, kernel: Profile = DEFAULT) -> bool:
    """Truth value by its first character (`on` and `off` by their first two)."""
    letters = "10yn" + "tf" * kernel.kstrtobool_tf + "ed" * kernel.kstrtobool_ed
    first, second = text[:1].lower(), text[1:2].lower()
    if (first in letters and first in ("1", "y", "t", "e")) or (first, second) == ("o", "n"):
        return True
    if (first in letters and first in ("0", "n", "f", "d")) or (first, second) == ("o", "f"):
        return False
    raise KernelError(errno.EINVAL, f"{_shown(text)} is not a boolean (1, y, on, 0, n, off)")


def _limited(value: int, kernel: Profile) -> int:
    """Return what a number without a sign is worth: 2**64 - 1 at most (_parse_integer_limit), or what is left of it."""
    return min(value, _U64 - 1) if kernel.numbers_saturate else value % _U64


def _to_int(value: int, kernel: Profile) -> int:
    """What is left when the kernel's 64-bit intermediate is stored into an int: the low 32 bits.

    The digits are limited before the sign counts, which makes 1 of the largest number.
    """
    value = (_limited(value, kernel) if value >= 0 else -_limited(-value, kernel)) & 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


def _shown(text: str) -> str:
    """Return a written text for a message: quoted, with visible escapes, and not too long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")  # noqa: PLR2004 -- a line's worth
