"""apfs: an IBM Z host with crypto cards, emulated as a FUSE file system.

`apfs.host.Host` is the machine itself and needs nothing but the standard library; `apfs.fuse` shows it as a mount.
"""

__version__ = "0.1.0"
