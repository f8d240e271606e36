"""The expert sidecar on disk: making it, opening it, verifying it. Its layout is `mach.io.sidecar_layout`."""
