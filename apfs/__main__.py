"""`python -m apfs`."""

from apfs.cli.start import main

main()
