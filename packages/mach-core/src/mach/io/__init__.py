"""What mach knows of a checkpoint without loading it: architecture, names, headers, layout, quantisation."""
