"""Adam for many tensors in one launch, moments in 32 bits or in 8: L4.

The rules are those of `qloracle.adam`, the kernels in `kernels/adam.cu`; the results are the
reference's bits. The constants of a step are formed here, in float64, and rounded once each.

`adam_step` and `adam_step_8bit` are the protocol's, for one tensor. `adam_steps` and
`adam_steps_8bit` take lists of tensors and launch once for each pair of types of parameter and
gradient. Their results are new arrays, or those of `out`, which may be the arguments themselves:

    adam_steps(device, params, grads, ms, vs, step=t, lr=1e-3, out=(params, ms, vs))   # in place

Tables tell the kernel where the tensors lie. Those of their sizes are the same at every step, and a
machine keeps them; the addresses are sent with each launch. Nothing waits for the machine.

Values are not looked at: a v below 0, or eps = 0 where v' is 0, gives NaN or infinity.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qloracle import arguments as plain
from qloracle_gpu.devices import Addresses, Argument, Array, Arrays, Device, type_name
from qloracle_gpu.operations import arguments as check
from qloracle_gpu.operations.blockwise import blocks, levels, log2, map_of

THREADS = 256
CHUNK = 4096  # elements of a block of threads, as in adam.cu
STRETCHES, LEAST = 64, 256  # 8 bits: a block of threads has stretches, of a block or of 256
LAST_STEP = 2**24  # the last count that float32 holds exactly

Names: TypeAlias = tuple[str, ...]
Parts: TypeAlias = tuple[Array, ...]  # of one tensor, as the kernel takes them
Lists: TypeAlias = tuple[Sequence[Array], ...]  # of many tensors, one list for each argument

STATE = ("param", "grad", "m", "v")
CODED = ("param", "grad", "m_codes", "m_absmax", "v_codes", "v_absmax")


def adam_step(
    device: Device,
    param: Array,
    grad: Array,
    m: Array,
    v: Array,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = True,
) -> Parts:
    """Return the new param in its type, and the new m and v, float32; the old ones stay.

    param: float32, float16 or bfloat16 of any shape; grad: the same shape, param's type or float32;
    m, v: the same shape, float32, v not negative. step: 1 to 2**24, counted from 1; lr, eps,
    weight_decay: at least 0; beta1, beta2: in [0, 1). TypeError or ValueError otherwise.

    Source: rule S11; `qloracle.adam_step`.
    """
    k = constants(step, lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay)
    old = state(device, (param, grad, m, v))
    new = _fresh(device, old)
    _launch(device, "adam_step", [old], [new], CHUNK, *k)
    return new


def adam_steps(
    device: Device,
    params: Sequence[Array],
    grads: Sequence[Array],
    ms: Sequence[Array],
    vs: Sequence[Array],
    *,
    out: Lists | None = None,
    **numbers: Any,
) -> tuple[list[Array], ...]:
    """Return the new params, ms and vs: `adam_step` of each tensor, in one launch.

    numbers: those of `adam_step`, by name. out: None for new arrays, else (params, ms, vs) to be
    written, contiguous, which may be those passed in. Types may differ from tensor to tensor; each
    pair of them is a launch.

    Source: rule S11.
    """
    k = constants(**numbers)
    tensors = _tensors(("params", "grads", "ms", "vs"), (params, grads, ms, vs))
    old = [state(device, arrays, names) for names, arrays in tensors]
    new = _results(device, old, out, 3)
    _launch(device, "adam_step", old, new, CHUNK, *k)
    return _lists(new, 3)


def adam_step_8bit(
    device: Device,
    param: Array,
    grad: Array,
    m_codes: Array,
    m_absmax: Array,
    v_codes: Array,
    v_absmax: Array,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    blocksize: int = 256,
    m_codebook: Array | None = None,
    v_codebook: Array | None = None,
) -> Parts:
    """Return the new param in its type, and the new codes and scales of m and of v.

    m_codes, v_codes: uint8[n], n the elements of param; m_absmax, v_absmax: float32[ceil(n /
    blocksize)]; blocksize: a power of two from 32 to 4096; m_codebook, v_codebook: None for the
    signed and the unsigned dynamic map, else 2 to 256 float32 that never decrease. The decay is
    decoupled. The rest and the errors as in `adam_step`.

    Source: rule S11b; `qloracle.adam_step_8bit`.
    """
    k = constants(step, lr, beta1, beta2, eps, weight_decay)
    maps, size = _maps(device, m_codebook, v_codebook), check.blocksize(blocksize)
    old = coded(device, (param, grad, m_codes, m_absmax, v_codes, v_absmax), size)
    new = _fresh(device, old)
    length = STRETCHES * max(size, LEAST)
    _launch(device, "adam_step_8bit", [old], [new], length, *maps, log2(size), *k)
    return new


def adam_steps_8bit(
    device: Device,
    *lists: Sequence[Array],
    blocksize: int = 256,
    m_codebook: Array | None = None,
    v_codebook: Array | None = None,
    out: Lists | None = None,
    **numbers: Any,
) -> tuple[list[Array], ...]:
    """Return the new params, and codes and scales: `adam_step_8bit` of each tensor, in one launch.

    lists: of each of its six arrays; numbers: the others of its arguments. out: None for new
    arrays, else (params, m_codes, m_absmax, v_codes, v_absmax) to be written, as in `adam_steps`.

    Source: rule S11b.
    """
    k, size = constants(**numbers, decoupled_weight_decay=True), check.blocksize(blocksize)
    maps = _maps(device, m_codebook, v_codebook)
    tensors = _tensors(("params", "grads", *CODED[2:]), lists)
    old = [coded(device, arrays, size, names) for names, arrays in tensors]
    new = _results(device, old, out, 5)
    length = STRETCHES * max(size, LEAST)
    _launch(device, "adam_step_8bit", old, new, length, *maps, log2(size), *k)
    return _lists(new, 5)


# ---- the launch ----------------------------------------------------------------------------------


def _launch(
    device: Device, kernel: str, old: list[Parts], new: list[Parts], length: int, *rest: Argument
) -> None:
    """Step all tensors, in chunks of so many elements: a launch for each pair of types."""
    alike: dict[str, list[Parts]] = {}
    for before, after in zip(old, new, strict=True):
        types = f"{type_name(before[0])}_{type_name(before[1])}"
        alike.setdefault(types, []).append(before + after)
    for types, tensors in alike.items():
        layout = _layout(tuple(check.count(arrays[0]) for arrays in tensors), length)
        chunks = layout[0].size
        if chunks:
            addresses = Addresses(tuple(array for arrays in tensors for array in arrays))
            tables = [device.table(table) for table in layout]
            device.launch(f"{kernel}_{types}", chunks, THREADS, addresses, *tables, *rest)


@lru_cache(maxsize=64)
def _layout(sizes: tuple[int, ...], length: int) -> tuple[NDArray[Any], ...]:
    """Return the tensor of each chunk, and of each tensor its first chunk and its size.

    >>> [table.tolist() for table in _layout((5000, 0, 10), 4096)]
    [[0, 0, 2], [0, 2, 2], [5000, 0, 10]]
    """
    chunks = np.array([blocks(n, length) for n in sizes], np.int64)
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), chunks)
    return owners, np.cumsum(chunks) - chunks, np.array(sizes, np.int64)


class Constants(NamedTuple):
    """What a step multiplies, divides and adds: each formed in float64, rounded to float32 once."""

    b1: np.float32
    one_minus_b1: np.float32
    b2: np.float32
    one_minus_b2: np.float32
    c1: np.float32
    c2: np.float32
    lr: np.float32
    eps: np.float32
    coupled: np.float32
    kept: np.float32


def constants(
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = True,
) -> Constants:
    """Check the numbers of a step, and return its constants in the kernel's order."""
    t = plain.integer("step", step, least=1)
    if t > LAST_STEP:
        raise ValueError(f"step must be at most 2**24, got {t}")
    rate, floor = plain.at_least("lr", lr, 0), plain.at_least("eps", eps, 0)
    decay = plain.at_least("weight_decay", weight_decay, 0)
    b1, b2 = plain.fraction("beta1", beta1), plain.fraction("beta2", beta2)
    numbers = (b1, 1 - b1, b2, 1 - b2, 1 - b1**t, 1 - b2**t, rate, floor)
    decoupled = plain.boolean("decoupled_weight_decay", decoupled_weight_decay)
    decays = (0.0, 1 - rate * decay) if decoupled else (decay, 1.0)
    return Constants(*np.array([*numbers, *decays], np.float32))


def _maps(
    device: Device, m_codebook: Array | None, v_codebook: Array | None
) -> tuple[Argument, ...]:
    """Return both maps as the kernel takes them: the levels and their number, twice."""
    m_map = map_of(device, m_codebook, "m_codebook")
    v_map = map_of(device, v_codebook, "v_codebook", signed=False)
    return *levels(m_map), *levels(v_map)


# ---- results -------------------------------------------------------------------------------------


def _fresh(device: Device, old: Parts) -> Parts:
    """Return arrays for the new state: all but the gradient."""
    kept = old[:1] + old[2:]
    return tuple(device.empty(tuple(array.shape), type_name(array)) for array in kept)


def _results(device: Device, old: list[Parts], out: Lists | None, width: int) -> list[Parts]:
    """Return where the new arrays of each tensor go: `width` arrays of each."""
    if out is None:
        return [_fresh(device, arrays) for arrays in old]
    if len(out) != width:
        raise ValueError(f"out must be {width} lists of arrays, got {len(out)}")
    names = tuple(f"out[{i}]" for i in range(width))
    pairs = zip(old, _tensors(names, out, len(old)), strict=True)
    return [_taken(device, *to, before[:1] + before[2:]) for before, to in pairs]


def _taken(device: Device, names: Names, arrays: Parts, like: Parts) -> Parts:
    """Return arrays to be written, of the shapes and types of `like`: none is a copy."""
    found = []
    for name, array, old in zip(names, arrays, like, strict=True):
        once, again = (check.typed(device, name, array, type_name(old)) for _ in range(2))
        check.shaped(name, once, tuple(old.shape), "its argument")
        if device.address(once) != device.address(again):  # each is a copy
            raise ValueError(f"{name} must be contiguous, since it is to be written")
        found.append(once)
    return tuple(found)


def _lists(new: list[Parts], width: int) -> tuple[list[Array], ...]:
    """Turn the arrays of each tensor into a list for each result."""
    return tuple([arrays[i] for arrays in new] for i in range(width))


# ---- what is checked -----------------------------------------------------------------------------


def _tensors(names: Names, lists: Lists, count: int | None = None) -> Iterator[tuple[Names, Parts]]:
    """Yield the names and the arrays of each tensor, once the lists are of one length."""
    for name, arrays in zip(names, lists, strict=True):
        if not isinstance(arrays, tuple | list):
            raise TypeError(f"{name} must be a list of arrays, got {type(arrays).__name__}")
        expected = len(lists[0]) if count is None else count
        if len(arrays) != expected:
            raise ValueError(f"{name} must hold {expected} arrays, one a tensor, got {len(arrays)}")
    for i, arrays in enumerate(zip(*lists, strict=True)):
        yield tuple(f"{name}[{i}]" for name in names), arrays


def state(device: Arrays, arrays: Parts, names: Names = STATE) -> Parts:
    """Return param, grad, m and v, once they fit each other."""
    param, grad = _param_and_grad(device, names, arrays)
    shape, beside = tuple(param.shape), f"{names[0]} of shape {tuple(param.shape)}"
    moments = zip(names[2:], arrays[2:], strict=True)
    known = [(name, check.typed(device, name, each, "float32")) for name, each in moments]
    return param, grad, *(check.shaped(name, each, shape, beside) for name, each in known)


def coded(device: Arrays, arrays: Parts, blocksize: int, names: Names = CODED) -> Parts:
    """Return param, grad, and codes and scales of m and of v, once they fit each other."""
    param, grad = _param_and_grad(device, names, arrays)
    n = math.prod(param.shape)
    forms = [("uint8", n), ("float32", blocks(n, blocksize))] * 2
    coded = zip(names[2:], arrays[2:], forms, strict=True)
    return param, grad, *(check.vector(device, name, a, *form) for name, a, form in coded)


def _param_and_grad(device: Arrays, names: Names, arrays: Parts) -> tuple[Array, Array]:
    param = check.floats(device, names[0], arrays[0])
    grad = check.floats(device, names[1], arrays[1], type_name(param), "float32")
    shape = tuple(param.shape)
    return param, check.shaped(names[1], grad, shape, f"{names[0]} of shape {shape}")
