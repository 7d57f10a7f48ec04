"""Mounts from the outside: what is mounted, what a server needs, and hosts used through their files."""
