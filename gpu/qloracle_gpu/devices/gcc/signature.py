"""What a kernel takes, and an argument of a launch as the bytes that it is handed.

The types are the C++ compiler's own word, so that an alias or a macro hides nothing: `PKf` is a
pointer to const float, `x` a long long. NumPy's types answer them one to one.

>>> Parameter("n", "x").pack(np.int64(3)).value
3
>>> Parameter("absmax", "PKf").pack(np.ones(2))
Traceback (most recent call last):
    ...
TypeError: absmax must be an array of float32, got float64
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qloracle_gpu.devices import Addresses, Argument

# Types as the Itanium C++ ABI writes them, and the two structures of common.cuh.
TYPES = {
    "f": "float32",
    "d": "float64",
    "7Float16": "float16",
    "8BFloat16": "bfloat16",
    "b": "bool",
    "h": "uint8",
    "t": "uint16",
    "j": "uint32",
    "m": "uint64",
    "y": "uint64",
    "a": "int8",
    "s": "int16",
    "i": "int32",
    "l": "int64",
    "x": "int64",
}


class Parameter(NamedTuple):
    """A parameter of a kernel: its name, and its type as the compiler writes it."""

    name: str
    type: str

    def pack(self, argument: Argument) -> "ctypes._SimpleCData[Any]":
        """Return an argument as C has it; TypeError by the parameter's name otherwise."""
        if self.type.startswith("P"):
            return ctypes.c_void_p(self._address(argument))
        wanted = TYPES.get(self.type, "a C type that no argument has")
        if not isinstance(argument, np.generic) or argument.dtype.name != wanted:
            raise TypeError(
                f"{self.name} must be a NumPy scalar of {wanted}, got {_kind(argument)}"
            )
        as_c: type[ctypes._SimpleCData[Any]] = np.ctypeslib.as_ctypes_type(wanted)
        return as_c(argument.item())

    def _address(self, argument: Argument) -> int | None:
        """Where an array begins. A pointer to a structure or to void takes any array."""
        element = TYPES.get(self.type.removeprefix("P").removeprefix("K"))
        if argument is None:
            return None
        if not isinstance(argument, np.ndarray):
            raise TypeError(f"{self.name} must be a NumPy array or None, got {_kind(argument)}")
        if element is not None and argument.dtype.name != element:
            raise TypeError(f"{self.name} must be an array of {element}, got {argument.dtype}")
        if not argument.flags.c_contiguous:
            raise TypeError(f"{self.name} must be contiguous, got strides {argument.strides}")
        return int(argument.ctypes.data)


def parameters(names: str, types: str) -> tuple[Parameter, ...]:
    """Return the parameters from two lists, apart by commas.

    >>> parameters("x,n", "Pf,x,")
    (Parameter(name='x', type='Pf'), Parameter(name='n', type='x'))
    """
    each = [type_ for type_ in types.split(",") if type_]
    each_name = [name for name in names.split(",") if name]
    return tuple(Parameter(*pair) for pair in zip(each_name, each, strict=True))


def table(addresses: Addresses) -> np.ndarray:
    """Return the addresses of arrays as uint64[k], 0 for None."""
    return np.array([0 if a is None else a.ctypes.data for a in addresses.arrays], np.uint64)


def pack(
    kernel: str, wanted: Sequence[Parameter], arguments: Sequence[Argument]
) -> list["ctypes._SimpleCData[Any]"]:
    """Return all arguments of a launch as C has them; TypeError where they do not fit."""
    if len(wanted) != len(arguments):
        names = ", ".join(parameter.name for parameter in wanted)
        raise TypeError(f"{kernel} takes {len(wanted)} arguments ({names}), got {len(arguments)}")
    return [parameter.pack(argument) for parameter, argument in zip(wanted, arguments, strict=True)]


def _kind(argument: object) -> str:
    """Say what an argument is.

    >>> _kind(np.float32(1)), _kind(1)
    ('float32', 'int')
    """
    if isinstance(argument, np.generic):
        return argument.dtype.name
    return type(argument).__name__
