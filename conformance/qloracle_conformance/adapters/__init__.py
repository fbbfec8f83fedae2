"""The short names that `verify` knows, one row each: an adapter is a module of the protocol."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple


class Adapter(NamedTuple):
    """A short name, the module that answers for it, and the libraries that must be installed."""

    name: str
    module: str
    needs: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """True when every library is found; nothing is imported to find out."""
        return all(find_spec(library) is not None for library in self.needs)


ADAPTERS = (
    Adapter("numpy", "qloracle", ()),
    Adapter("torch", "qloracle_gpu.torch_backend", ("torch",)),
    Adapter("bitsandbytes", "qloracle_conformance.adapters.bnb", ("torch", "bitsandbytes")),
    Adapter("torchao", "qloracle_conformance.adapters.ao", ("torch", "torchao")),
)


def find(name: str) -> Adapter | None:
    """Return the adapter of a short name, or None."""
    return next((adapter for adapter in ADAPTERS if adapter.name == name), None)
