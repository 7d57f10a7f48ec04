"""`python -m apfs`."""

from apfs.cli.main import main

main()
