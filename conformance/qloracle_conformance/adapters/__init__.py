"""The short names that `verify` knows, one row each: an adapter is a module of the protocol."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple


class Adapter(NamedTuple):
    """A short name, the module that answers for it, and the libraries that must be installed.

    Where one module has several implementations, `member` names the object that is meant.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    member: str = ""

    @property
    def installed(self) -> bool:
        """True when every library is found; nothing is imported to find out."""
        return all(find_spec(library) is not None for library in self.needs)


_HERE = "qloracle_conformance.adapters"
_BNB = ("torch", "bitsandbytes")

ADAPTERS = (
    Adapter("numpy", "qloracle", ()),
    Adapter("torch", "qloracle_gpu.torch_backend", ("torch",)),
    Adapter("bitsandbytes", f"{_HERE}.bnb", _BNB),
    Adapter("bitsandbytes.train", f"{_HERE}.bnb_linear", _BNB, "training"),
    Adapter("bitsandbytes.eval", f"{_HERE}.bnb_linear", _BNB, "evaluation"),
    Adapter("torchao", f"{_HERE}.ao", ("torch", "torchao")),
    Adapter("peft", f"{_HERE}.peft_layers", (*_BNB, "peft")),
    Adapter("torch.optim", f"{_HERE}.torch_optim", ("torch",), "for_loop"),
    Adapter("torch.optim.foreach", f"{_HERE}.torch_optim", ("torch",), "foreach"),
    Adapter("torch.optim.fused", f"{_HERE}.torch_optim", ("torch",), "fused"),
    Adapter("optax", f"{_HERE}.optax_adam", ("jax", "optax")),
)


def find(name: str) -> Adapter | None:
    """Return the adapter of a short name, or None."""
    return next((adapter for adapter in ADAPTERS if adapter.name == name), None)
