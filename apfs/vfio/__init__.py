"""The VFIO core as far as a vfio_ap device needs it: devices, groups, the migration state machine."""
