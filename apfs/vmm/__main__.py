"""`python -m apfs.vmm`: become QEMU for s390x."""

from apfs.vmm.emulator import main

main()
