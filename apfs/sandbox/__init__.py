"""All of `apfs exec`: a command that sees an emulated host at /sys and /dev."""
