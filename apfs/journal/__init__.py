"""What happened on a host: records, the journal that orders them, and questions to it. Imports nothing of apfs."""
