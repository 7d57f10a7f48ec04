"""The control files in `/ctl`, with which an operator controls and observes the machine."""
