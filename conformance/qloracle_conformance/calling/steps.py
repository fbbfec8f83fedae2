"""Two optimizers for pagers whose implementation has none: what a step computes is not the point.

A paged step must equal a plain one, whatever it computes; both are run by `run_steps`.  All of this
is short, needs only NumPy, and stands as it is in the scripts that reproduce a failure.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import numpy as np


def adam_step(param, grad, m, v, *, step, lr):
    """A step of Adam in float32."""
    m = np.float32(0.9) * m + np.float32(0.1) * grad
    v = np.float32(0.999) * v + np.float32(0.001) * grad * grad
    c1, c2 = np.float32(1 - 0.9**step), np.float32(1 - 0.999**step)
    return param - np.float32(lr) * (m / c1) / (np.sqrt(v / c2) + np.float32(1e-8)), m, v


def adam_step_8bit(param, grad, m_codes, m_absmax, v_codes, v_absmax, *, step, lr):
    """A step of Adam whose moments are whole numbers beside a scale for each 256 of them."""
    n = param.size

    def decoded(codes, absmax, zero):
        scale = np.repeat(absmax, 256)[:n] / np.float32(255 - zero)
        return (codes.astype(np.float32) - np.float32(zero)) * scale

    def coded(values, zero):
        absmax = np.maximum.reduceat(np.abs(values), np.arange(0, n, 256))
        scale = np.repeat(np.maximum(absmax, np.float32(1e-30)), 256)[:n]
        return (np.rint(values / scale * np.float32(255 - zero)) + zero).astype(np.uint8), absmax

    m, v = decoded(m_codes, m_absmax, 128), decoded(v_codes, v_absmax, 0)
    param, m, v = adam_step(param, grad, m, v, step=step, lr=lr)
    return (param, *coded(m, 128), *coded(v, 0))


@np.errstate(all="ignore")  # what a faulty pager reads may be anything
def run_steps(pager, step_of, handles, grads, counts, part):
    """Steps on paged state, `part` elements at a time."""
    blocks = (1, 1, 1) if len(handles) == 3 else (1, 1, 256, 1, 256)  # elements a number
    for step in counts:
        grad, n = grads[step % len(grads)], grads.shape[1]
        with pager.use(*handles) as arrays:
            for low in range(0, n, part or n):
                high = min(low + (part or n), n)
                places = [slice(low // size, -(-high // size)) for size in blocks]
                old = [array[place] for array, place in zip(arrays, places, strict=True)]
                new = step_of(old[0], grad[low:high], *old[1:], step=step, lr=0.01)
                for array, place, values in zip(arrays, places, new, strict=True):
                    array[place] = values
