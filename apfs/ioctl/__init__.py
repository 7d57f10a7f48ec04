"""Serving the ioctls of unmodified programs, outside of the core: seccomp notification, memory of processes."""
