"""The commands of mach-core; others join through the entry-point group `mach.commands`."""
