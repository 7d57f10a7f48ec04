"""The journal of a host: records, their order, and queries. Imports nothing else of apfs."""
