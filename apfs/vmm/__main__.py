"""`python -m apfs.vmm`: be QEMU for s390x."""

from apfs.vmm.emulator import main

main()
