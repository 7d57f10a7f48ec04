"""Mounts seen from outside: the mount table, requirements of a server, and hosts used through their files."""
