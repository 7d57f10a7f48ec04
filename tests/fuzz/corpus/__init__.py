"""What was found, one file each."""

from pathlib import Path

HERE = Path(__file__).parent
