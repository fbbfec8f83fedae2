"""optax's adamw, and adam behind its coupled decay, behind the protocol.

Read with optax 0.2.8.  A step is one compiled `update` and `apply_updates` of a real optimizer
whose state was put in.  optax keeps v in the parameter's type, and its adam has no weight decay:
coupled decay is what its `add_decayed_weights` before adam makes.  This file imports nothing of the
kit's, so that a repro script can carry it along whole.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

arrays = "jax"
limits = {"dtype": ["float32"]}


def adam_step(
    param: jax.Array, grad: jax.Array, m: jax.Array, v: jax.Array, *, step: int, **numbers: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`optax.adamw`, or `add_decayed_weights` and `adam` where the decay is coupled."""
    if param.dtype != jnp.float32:
        raise NotImplementedError(f"optax keeps v of a {param.dtype} parameter in that type")
    param, m, v = _step(param, grad, m, v, jnp.int32(step - 1), tuple(numbers.items()))
    return param, m, v


@partial(jax.jit, static_argnames="numbers")  # Python's numbers, as one writes them in a training
def _step(
    param: jax.Array,
    grad: jax.Array,
    m: jax.Array,
    v: jax.Array,
    count: jax.Array,
    numbers: tuple[tuple[str, Any], ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step after `count` steps."""
    optimizer = _optimizer(**dict(numbers))
    state = optax.tree.set(optimizer.init(param), count=count, mu=m, nu=v)
    updates, state = optimizer.update(grad, state, param)
    new = optax.apply_updates(param, updates)
    return new, optax.tree.get(state, "mu"), optax.tree.get(state, "nu")


def _optimizer(
    *, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = True,
) -> optax.GradientTransformation:  # fmt: skip
    if decoupled_weight_decay:
        return optax.adamw(lr, beta1, beta2, eps, weight_decay=weight_decay)
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(lr, beta1, beta2, eps))
