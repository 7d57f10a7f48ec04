"""The mediated device core: parents, types, creation and removal (drivers/vfio/mdev in Linux)."""
