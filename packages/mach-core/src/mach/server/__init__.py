"""Documented import paths of the server; the code is in mach-server."""
