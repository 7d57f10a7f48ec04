"""What happened on a host: records, the log that orders them, and questions about it. Imports nothing of apfs."""
