"""FUSE: shows a host as a mounted file system. A thin layer: no rule of the kernel is in it.

Importing the package needs nothing; `operations` and `session` need pyfuse3 and trio.
"""
