"""Lazy facade over `mach_store.bank_cache`, kept because the path is documented."""

from mach.facade import lazy_attributes

__getattr__, __dir__ = lazy_attributes(
    __name__,
    {
        "BankCache": ("mach_store.bank_cache", "BankCache"),
        "LayerExpertBank": ("mach_store.layer_bank", "LayerExpertBank"),
    },
    "mach-store",
)
