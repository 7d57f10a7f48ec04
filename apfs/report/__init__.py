"""One HTML page with what happened on a host: its queues at every moment, and why they are where they are."""
