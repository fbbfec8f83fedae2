"""The short names that `verify` knows, one row each: an adapter is a module of the protocol."""

import ctypes
from importlib.util import find_spec
from typing import NamedTuple


class Adapter(NamedTuple):
    """A short name, the module that answers for it, and the libraries that must be installed.

    Where one module has several implementations, `member` names the object that is meant.  With no
    name on the command line, those are judged that are installed and whose `driver`, a shared
    library, is on this machine, except those that are judged `by_name` only.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    member: str = ""
    driver: str = ""
    by_name: bool = False
    note: str = ""  # what a reader of its verdict should know

    @property
    def installed(self) -> bool:
        """True when every library is found; nothing is imported to find out."""
        return all(find_spec(library) is not None for library in self.needs)

    @property
    def found(self) -> bool:
        """True when it is judged where none is named."""
        return not self.by_name and self.installed and (not self.driver or _loads(self.driver))


def _loads(library: str) -> bool:
    """Tell whether a shared library is on this machine.

    >>> _loads("libnobody.so.1")
    False
    """
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


_HERE = "qloracle_conformance.adapters"
_BNB = ("torch", "bitsandbytes")

# Where none is named, they are judged in this order: other people's before our own.
ADAPTERS = (
    Adapter("bitsandbytes", f"{_HERE}.bnb", _BNB),
    Adapter("bitsandbytes.train", f"{_HERE}.bnb_linear", _BNB, "training"),
    Adapter("bitsandbytes.eval", f"{_HERE}.bnb_linear", _BNB, "evaluation"),
    Adapter("torchao", f"{_HERE}.ao", ("torch", "torchao")),
    Adapter("peft", f"{_HERE}.peft_layers", (*_BNB, "peft")),
    Adapter("torch.optim", f"{_HERE}.torch_optim", ("torch",), "for_loop"),
    Adapter("torch.optim.foreach", f"{_HERE}.torch_optim", ("torch",), "foreach"),
    Adapter("torch.optim.fused", f"{_HERE}.torch_optim", ("torch",), "fused"),
    Adapter("optax", f"{_HERE}.optax_adam", ("jax", "optax")),
    Adapter("example", f"{_HERE}.ragged_block", (), note="an example with a fault"),
    Adapter("numpy", "qloracle", (), note="the reference"),
    Adapter("torch", "qloracle_gpu.torch_backend", ("torch",)),
    Adapter("cupy", "qloracle_gpu.cupy_backend", ("cupy",), driver="libcuda.so.1"),
    # Both run the CUDA text slowly, on a CPU.
    Adapter("host", "qloracle_gpu.devices.gcc", (), "implementation", by_name=True),
    Adapter("ptx", "qloracle_gpu.devices.ptx", (), "implementation", by_name=True),
    # Without a GPU a stand-in answers, and only those who ask for it.
    Adapter("managed", "qloracle_gpu.managed", (), "implementation", by_name=True),
)


def found_here() -> list[str]:
    """Short names of what is judged where none is named: what is installed and can run here."""
    return [adapter.name for adapter in ADAPTERS if adapter.found]


def find(name: str) -> Adapter | None:
    """Return the adapter of a short name, or None."""
    return next((adapter for adapter in ADAPTERS if adapter.name == name), None)
