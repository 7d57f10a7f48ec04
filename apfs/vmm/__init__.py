"""Virtual machines on an emulated host: support for vfio-ap and its migration in QEMU, without KVM."""
