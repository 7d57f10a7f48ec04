"""What Linux offers to all drivers: the driver core, modules, number grammars. Knows nothing of AP, does no I/O."""
