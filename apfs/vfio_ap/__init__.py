"""The vfio_ap driver: the matrix device, guest matrices, queue binding, live migration."""
