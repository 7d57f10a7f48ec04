"""Virtual machines on an emulated host: what QEMU needs in order to have vfio-ap, and migrate it, without KVM."""
