"""The one exception of the core: an errno for the caller, a reason for the human."""

import errno as errno_names

# Python knows two names for this number and prefers the one that Linux does not use.
_NAMES = {**errno_names.errorcode, errno_names.EOPNOTSUPP: "EOPNOTSUPP"}


class KernelError(Exception):
    """A refused request.

    `errno` is the positive error number that a system call would set; `why` says in words what was wrong and, where
    there is something to be done about it, what. Nothing has changed in the model when it is raised.
    """

    def __init__(self, errno: int, why: str) -> None:
        super().__init__(errno, why)
        self.errno = errno
        self.why = why

    @property
    def name(self) -> str:
        """Symbolic errno, such as `EINVAL`."""
        return _NAMES[self.errno]

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"
