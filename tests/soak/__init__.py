"""Everything at once on the largest host, for as long as somebody likes: `tests/soak.sh [MINUTES]`."""
