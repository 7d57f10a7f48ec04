"""Describing hosts in TOML: reading, writing, and the gallery."""
