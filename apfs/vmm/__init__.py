"""Virtual machines on an emulated host: what QEMU needs to have vfio-ap, and to migrate it, without KVM."""
