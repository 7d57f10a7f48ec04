"""The Adjunct Processor hardware and the AP bus above it (drivers/s390/crypto in Linux)."""
