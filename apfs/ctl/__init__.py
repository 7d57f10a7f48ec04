"""The files of `/ctl`, by which an operator works the machine and sees what happened."""
