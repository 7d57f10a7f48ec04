"""Injected errors for reads and writes of attributes."""

from __future__ import annotations

from apfs.errors import KernelError


class Faults(dict[str, tuple[int, int]]):
    """An errno, and the number of accesses that will fail with it, by the path of the attribute."""

    def inject(self, path: str, number: int, accesses: int) -> None:
        """Make the next reads and writes of the attribute at `path`, which need not exist yet, fail with an errno."""
        self[path] = (number, accesses)

    def take(self, path: str) -> None:
        """Raise the error that was injected into this path, if an access is left that it is for."""
        if path in self:
            number, left = self.pop(path)
            if left > 1:
                self[path] = (number, left - 1)
            raise KernelError(number, "injected by the console verb fault")
