"""Owns the version of mach-core, apart from the package's facade so that its own modules can name it."""

__version__ = "0.1.0"
