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
        name, parameters = public.__name__, signature(public).parameters
        names = [*parameters]
        positional = [n for n in names if parameters[n].kind is not Parameter.KEYWORD_ONLY]
        defaults = {n: p.default for n, p in parameters.items() if p.default is not Parameter.empty}

        def run(arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            first: Any = arguments[0] if arguments else options.get(names[0])
            size = options.get("blocksize", defaults.get("blocksize", ANY_BLOCK))
            if kernels and cuda.takes(first, size):
                values.float_type("dtype", options.get("dtype", torch.float32))
                return getattr(cuda.on(first), name)(*arguments, **options)
            return public(*arguments, **options)

        def whole(*flat: Any) -> Any:
            count = len(positional)
            options = dict(zip(names[count:], flat[count:], strict=True))
            with nullcontext() if looks else values.unlooked():
                return run(flat[:count], options)

        schema = library.infer_schema(public, mutates_args=()).replace("*, ", "")
        schema = re.sub(r"=[^,)]+", "", schema)  # torch leaves out what equals its default
        box = library.custom_op(f"qloracle::{name}", whole, mutates_args=(), schema=schema)
        box.register_fake(fake)
        if gradient is not None:
            box.register_autograd(gradient, setup_context=keep)

        def look(arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            given = {**defaults, **dict(zip(positional, arguments, strict=False)), **options}
            if len(arguments) > len(positional) or sorted(given) != sorted(names):
                return public(*arguments, **options)  # which says what is missing or unknown
            return box(*(given[n] if n in learns else _cut(given[n]) for n in names))

        @wraps(public)
        def call(*arguments: Any, **options: Any) -> Any:
            if torch.compiler.is_compiling():
                return look(arguments, options)
            given = {**dict(zip(positional, arguments, strict=False)), **options}
            if not is_watched(given, learns):
                return run(arguments, options)
            try:
                return look(arguments, options)
            except RuntimeError:  # torch's own complaint, of a wrong type for one
                with torch.no_grad():
                    run(arguments, options)
                raise

        vars(call)["box"] = box
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
