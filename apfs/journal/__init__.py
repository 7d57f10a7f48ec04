"""What happened on a host: records, the journal that orders them, and queries. Imports nothing of apfs."""
