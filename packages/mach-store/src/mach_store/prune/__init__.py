"""Slicing a checkpoint into the engine layout, whole or with fewer experts: what `mach-prune` does."""
