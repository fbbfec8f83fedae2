"""Which layers get an adapter? A walk over the names of a model.

A model is a dict of its linear layers under dotted names, as `named_modules` lists them. Users
choose among them in one of three ways (PEFT's `target_modules`):

    a list         names that are in the list, or that end in "." and an entry of the list
    a string       a regular expression that must match the whole name
    "all-linear"   all of them but the head

A list compares whole parts of a name: "proj" does not match "q_proj". A string is never a list of
one: as an expression, "q_proj" matches only a layer of exactly that name.

>>> names = [f"layers.{i}.{part}" for i in range(2) for part in ("q_proj", "v_proj")] + ["lm_head"]
>>> target_modules(names, ["v_proj"])
['layers.0.v_proj', 'layers.1.v_proj']
>>> target_modules(names, ".*[.]0[.].*")
['layers.0.q_proj', 'layers.0.v_proj']
>>> target_modules(names, "all-linear")[-1]
'layers.1.v_proj'

An entry that matches nothing is an error here: an adapter that is silently missing shows up weeks
later, as a model that learnt too little.

>>> target_modules(names[:2], ["v_proj", "k_proj"])
Traceback (most recent call last):
    ...
ValueError: target_modules: 'k_proj' names no layer; there are layers.0.q_proj, layers.0.v_proj

arXiv:2305.14314, section 4, finds that adapters on all linear layers matter more than their rank.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import DTypeLike

from qloracle import arguments as check
from qloracle._rounding import rounded
from qloracle.arguments import Array
from qloracle.layers import Linear
from qloracle.lora import lora_scaling

ALL = "all-linear"
HEAD = "lm_head"


def target_modules(
    names: Iterable[str], wanted: str | Sequence[str], *, head: str = HEAD
) -> list[str]:
    """Return the matching names, in their order.

    wanted: a list or tuple of names and suffixes, a regular expression, or "all-linear"; head: the
    name that "all-linear" leaves out. ValueError for an entry that matches nothing, TypeError for
    anything but a string or a list of strings.

    Source: PEFT 0.21.2, `check_target_module_exists` and `_maybe_include_all_linear_layers`.
    """
    known = list(names)
    if isinstance(wanted, str):
        return _by_pattern(known, wanted, head)
    if not isinstance(wanted, list | tuple) or not all(isinstance(word, str) for word in wanted):
        raise TypeError(f"target_modules must be a str or a list of str, got {wanted!r}")
    if not wanted:
        raise ValueError(f"target_modules must name a layer; there are {_listed(known)}")
    for word in wanted:
        if not any(_ends_in(name, word) for name in known):
            raise _nothing(word, known)
    return [name for name in known if any(_ends_in(name, word) for word in wanted)]


def with_adapters(
    model: Mapping[str, Linear],
    wanted: str | Sequence[str],
    rng: np.random.Generator,
    *,
    r: int,
    alpha: float,
    rank_stabilized: bool = False,
    dtype: DTypeLike = np.float32,
    head: str = HEAD,
) -> dict[str, Linear]:
    """Return the model with new adapters on the matching layers; the given model stays as it is.

    A is drawn uniformly from +-1 / sqrt(in) and B is zero, so that nothing changes yet. r and alpha
    as in `lora_scaling`.

    Source: arXiv:2106.09685, section 4.1; PEFT 0.21.2, `reset_lora_parameters`.

    >>> model = {"up": Linear(np.ones((3, 2), np.float32)), "lm_head": Linear(np.ones((4, 3)))}
    >>> adapted = with_adapters(model, "all-linear", np.random.default_rng(0), r=2, alpha=4)
    >>> [(name, layer.adapter[0].shape, layer.scaling) for name, layer in adapted.items()]
    [('up', (2, 2), 2.0), ('lm_head', (0, 3), 1.0)]
    """
    s = lora_scaling(alpha, r, rank_stabilized=rank_stabilized)
    adapted = dict(model)
    for name in target_modules(model, wanted, head=head):
        a, b = _fresh(model[name].shape, r, rng, dtype)
        adapted[name] = replace(model[name], a=a, b=b, scaling=s)
    return adapted


def _fresh(
    shape: tuple[int, int], r: int, rng: np.random.Generator, dtype: DTypeLike
) -> tuple[Array, Array]:
    (out, width), wanted = shape, check.float_type("dtype", dtype)
    bound = 1 / np.sqrt(width)
    return rounded(rng.uniform(-bound, bound, (r, width)), wanted), np.zeros((out, r), wanted)


def _by_pattern(names: list[str], pattern: str, head: str) -> list[str]:
    if pattern.lower() == ALL:
        return [name for name in names if not _ends_in(name, head)]
    try:
        meant = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ValueError(f"target_modules: {pattern!r} is not a valid pattern: {error}") from None
    if not meant:
        raise _nothing(pattern, names)
    return meant


def _ends_in(name: str, word: str) -> bool:
    return name == word or name.endswith(f".{word}")


def _nothing(word: str, names: list[str]) -> ValueError:
    return ValueError(f"target_modules: {word!r} names no layer; there are {_listed(names)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
