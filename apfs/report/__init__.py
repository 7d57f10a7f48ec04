"""The HTML report of a host: its queues at every moment, and the reasons for their state."""
