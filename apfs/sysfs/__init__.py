"""The tree as it is seen: nodes computed when they are looked at, and their open files."""
