"""Which models there are: on this machine, and in the remote catalogue."""
