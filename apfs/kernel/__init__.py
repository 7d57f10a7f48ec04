"""What Linux gives every driver: sysfs, the driver core, number grammars. Knows nothing of AP, does no I/O."""
