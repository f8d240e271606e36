"""Expert sidecars, expert banks and the dispatch of routed experts: the storage half of mach's pipeline.

Import from the defining modules (`mach_store.bank_cache`, `mach_store.sidecar.export`, …); this package
re-exports nothing, so that importing one part never loads the others.
"""
