"""AdamW for CuPy whose moments page: m and v in managed memory, all tensors in one launch.

    optimizer = PagedAdamW(params, lr=2e-4, weight_decay=0.0)
    optimizer.step(grads)

The parameters are changed in place. A step is rule S11 by the kernels of this package, and its bits
do not depend on where m and v lie. Their pages are fetched before it on CuPy's current stream, and
stay until something else needs the memory. Where nothing pages, m and v are CuPy's own arrays, with
one warning that says why.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qloracle_gpu import operations
from qloracle_gpu.devices.on_cupy import CupyDevice
from qloracle_gpu.managed.memory import Memory, PlainMemory, best, in_cupy

MOMENTS = ("m", "v")


class PagedAdamW:
    """Adam with decoupled weight decay for a list of CuPy arrays on one device.

    params: contiguous, float32, float16 or bfloat16; the numbers are those of `adam_step`, and so
    are the errors, at the first step. memory: None for managed memory of the current device.
    """

    def __init__(
        self,
        params: Sequence[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        memory: Memory | None = None,
    ) -> None:
        self.params, self.step_count = list(params), 0
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.memory = best() if memory is None else memory
        self._device = CupyDevice()
        self._moments = [[self._room(param) for param in self.params] for _ in MOMENTS]

    def step(self, grads: Sequence[Any]) -> None:
        """Change the parameters and the moments by a list of gradients, in place."""
        import cupy

        stream = cupy.cuda.get_current_stream().ptr
        ms, vs = ([self._fetched(array, stream) for array in arrays] for arrays in self._moments)
        form: dict[str, Any] = {"lr": self.lr, "eps": self.eps, "weight_decay": self.weight_decay}
        with self.memory.kernel():
            operations.adam.adam_steps(
                self._device, self.params, list(grads), ms, vs,
                step=self.step_count + 1, beta1=self.betas[0], beta2=self.betas[1], **form,
                out=(self.params, ms, vs),
            )  # fmt: skip
        self.step_count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, and the moments as NumPy arrays of their own."""
        self.memory.synchronize()
        plain = isinstance(self.memory, PlainMemory)
        moments = ([a.get() if plain else a.copy() for a in arrays] for arrays in self._moments)
        return {"step": self.step_count, **dict(zip(MOMENTS, moments, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`; the moments lie where they lay, and page as before.

        ValueError for a state of other shapes; all stays as it was then.
        """
        import cupy

        shapes = [tuple(param.shape) for param in self.params]
        for name in MOMENTS:
            found = [np.shape(values) for values in state[name]]
            if found != shapes:
                raise ValueError(f"{name} must have shapes {shapes}, got {found}")
        self.memory.synchronize()
        for name, arrays in zip(MOMENTS, self._moments, strict=True):
            for array, values in zip(arrays, state[name], strict=True):
                new = np.asarray(values, np.float32)
                array[...] = cupy.asarray(new) if isinstance(self.memory, PlainMemory) else new
        self.step_count = int(state["step"])

    def _room(self, param: Any) -> Any:
        """Allocate a moment of zeros: in managed memory a NumPy array, else CuPy's."""
        import cupy

        plain = isinstance(self.memory, PlainMemory)
        array = (cupy if plain else self.memory).empty(tuple(param.shape), "float32")
        array[...] = 0
        return array

    def _fetched(self, array: Any, stream: int) -> Any:
        """Return a moment as CuPy sees it, its pages on their way."""
        if isinstance(self.memory, PlainMemory):
            return array
        self.memory.prefetch(array, stream=stream)
        return in_cupy(array)
