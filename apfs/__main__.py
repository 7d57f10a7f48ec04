"""`python -m apfs`."""

from apfs.cli import main

main()
