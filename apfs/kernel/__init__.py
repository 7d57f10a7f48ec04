"""Linux features for all drivers: driver core, modules, number grammars. Knows nothing of AP, does no I/O."""
