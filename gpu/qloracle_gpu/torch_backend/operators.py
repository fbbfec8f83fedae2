"""The functions of the protocol as operators of torch, under `torch.ops.qloracle`.

An operator is a closed box to a compiler, which sees the shape of the result and the operator that
is the gradient. The box holds the numerics: no compiler reorders or fuses what is in it, and a CUDA
graph can record what it does. CUDA tensors go to the kernels: see `cuda`.

Where nobody looks at the box, neither a compiler nor a gradient, what is in it is called directly:
torch imports its compiler at the first call of any operator, which takes a second.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, library

from qloracle_gpu.torch_backend import cuda, values

PLAIN = (Tensor, torch.nn.Parameter)
ANY_BLOCK = 64  # where there are no blocks

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)


class Operator:
    """A function of the protocol, by its own signature, and the box that runs it."""

    def __init__(self, public: Function, learns: Sequence[str], looks: bool, kernels: bool) -> None:
        parameters = signature(public).parameters.values()
        self.public, self.name, self.names = public, public.__name__, [p.name for p in parameters]
        self.positional = [p.name for p in parameters if p.kind is not Parameter.KEYWORD_ONLY]
        self.defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
        self.learns, self.looks, self.kernels = learns, looks, kernels
        schema = library.infer_schema(public, mutates_args=()).replace("*, ", "")
        schema = re.sub(r"=[^,)]+", "", schema)  # torch leaves out what equals its default
        name = f"qloracle::{self.name}"
        self.box = library.custom_op(name, self.within, mutates_args=(), schema=schema)

    def call(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call the box for those who look at it, else what is in it."""
        if torch.compiler.is_compiling():
            return self.seen(arguments, options)
        given = {**dict(zip(self.positional, arguments, strict=False)), **options}
        if not is_watched(given, self.learns):
            return self.run(arguments, options)
        try:
            return self.seen(arguments, options)
        except RuntimeError:  # torch's own complaint, of a wrong type for one
            with torch.no_grad():
                self.run(arguments, options)
            raise

    def seen(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call the box, with all arguments by position; only those that learn have a gradient."""
        positional = dict(zip(self.positional, arguments, strict=False))
        given = {**self.defaults, **positional, **options}
        if len(arguments) > len(self.positional) or sorted(given) != sorted(self.names):
            return self.public(*arguments, **options)  # which says what is missing or unknown
        return self.box(*(given[n] if n in self.learns else _cut(given[n]) for n in self.names))

    def within(self, *flat: Any) -> Any:
        """Run what is in the box."""
        count = len(self.positional)
        options = dict(zip(self.names[count:], flat[count:], strict=True))
        with nullcontext() if self.looks else values.unlooked():
            return self.run(flat[:count], options)

    def run(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run the kernels, or the function as it is written."""
        first: Any = arguments[0] if arguments else options.get(self.names[0])
        size = options.get("blocksize", self.defaults.get("blocksize", ANY_BLOCK))
        if self.kernels and cuda.takes(first, size):
            values.float_type("dtype", options.get("dtype", torch.float32))
            return getattr(cuda.on(first.device), self.name)(*arguments, **options)
        return self.public(*arguments, **options)


def operator(
    fake: Function,
    keep: Function | None = None,
    gradient: Function | None = None,
    *,
    learns: Sequence[str] = (),
    looks: bool = True,
    kernels: bool = True,
) -> Callable[[F], F]:
    """Make a function an operator to those who look at it; `boxed` returns the operator.

    It has the function's name, and its arguments, all by position. `fake` returns results of the
    same forms without numbers. `keep` and `gradient` are torch's setup_context and backward, and
    `learns` names the arguments that get a gradient. Where `looks` is False, values are checked in
    direct calls only. CUDA tensors go to the kernels, unless there are none for this function.
    """

    def made(public: F) -> F:
        own = Operator(public, learns, looks, kernels)
        own.box.register_fake(fake)
        if gradient is not None:
            own.box.register_autograd(gradient, setup_context=keep)

        @wraps(public)
        def call(*arguments: Any, **options: Any) -> Any:
            return own.call(arguments, options)

        vars(call)["box"] = own.box
        return cast("F", call)

    return made


def boxed(public: Function) -> Function:
    """Return a function as an operator, whoever looks."""
    box: Function = vars(public)["box"]
    return box


def is_watched(arguments: Mapping[str, Any], learns: Sequence[str]) -> bool:
    """Tell whether somebody looks at the box: a tracer, a gradient, a tensor of another class.

    >>> x = torch.ones(1, requires_grad=True)
    >>> is_watched({"x": x, "bias": None}, ["x", "bias"]), is_watched({"w": x}, ["x"])
    (True, False)
    """
    tensors = {name: each for name, each in arguments.items() if isinstance(each, Tensor)}
    learnt = any(tensors[name].requires_grad for name in learns if name in tensors)
    traced = torch._C._get_tracing_state() is not None  # by torch.jit.trace
    strange = any(type(tensor) not in PLAIN for tensor in tensors.values())
    return (learnt and torch.is_grad_enabled()) or traced or strange


def like(*tensors: Tensor) -> Any:
    """Return tensors of the same shapes and types, dense, without numbers."""
    return tuple(t.new_empty(t.shape) for t in tensors)


def _cut(value: Any) -> Any:
    """Return a tensor that has no part in any gradient; anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value
