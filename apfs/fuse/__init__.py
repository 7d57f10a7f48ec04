"""FUSE: serves a host as a mounted file system. A thin layer without rules of the kernel.

Importing the package has no requirements; `operations` and `session` need pyfuse3 and trio.
"""
