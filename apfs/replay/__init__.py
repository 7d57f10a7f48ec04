"""Repeating the requests of a journal on a fresh host, and comparing the results."""
