"""Doing again, on a fresh host, what a journal says was done, and comparing what comes of it."""
