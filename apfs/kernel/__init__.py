"""What Linux gives every driver: the driver core, modules, number grammars. Knows nothing of AP, does no I/O."""
