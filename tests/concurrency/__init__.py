"""Many processes at once on one mount, and the proof that what they saw has an order."""
