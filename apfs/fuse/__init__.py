"""The FUSE shell: shows a host as a mounted file system. Thin: no rule of the kernel lives here.

Importing the package needs nothing; `operations` and `session` need pyfuse3 and trio.
"""
