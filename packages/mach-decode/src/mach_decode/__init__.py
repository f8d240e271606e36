"""Model loading, decoding loops and sampling: the decode half of mach's pipeline.

Import from the defining modules: `mach_decode.loader`, `mach_decode.engine`, `mach_decode.sampling`.
"""
