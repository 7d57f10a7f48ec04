"""The core's only exception: an errno for the caller, and a reason for people."""

import errno as errno_names

# Python knows two names for this number and prefers the one that Linux does not use.
_NAMES = {**errno_names.errorcode, errno_names.EOPNOTSUPP: "EOPNOTSUPP"}


def errno_name(number: int) -> str:
    """Return the symbolic name of a (positive) error number, such as `EINVAL`."""
    return _NAMES[number]


class KernelError(Exception):
    """A refused request.

    `errno` is the positive error number that a system call would set; `why` says in words what was wrong and, where
    there is something to be done about it, what.

    Nothing in the model has changed when it is raised, although there may be new lines in the kernel log, interrupts
    that asked a user to release a device, and one injected fault fewer. There are two exceptions, as in the driver:

    * a reset that ends with EIO has reset all queues, and at least one of them failed (`MatrixMdev.reset`);
    * a piece of a migration stream that is refused for its content has been taken (`ResumingFile`).
    """

    def __init__(self, errno: int, why: str) -> None:
        super().__init__(errno, why)
        self.errno = errno
        self.why = why

    @property
    def name(self) -> str:
        """Symbolic errno, such as `EINVAL`."""
        return errno_name(self.errno)

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"
