"""AdamW for torch whose moments page: `torch.optim.AdamW` with m and v in managed memory.

    optimizer = PagedAdamW(model.parameters(), lr=2e-4, weight_decay=0.0)
    loss.backward()
    optimizer.step()

A step is `adam_step` of `torch_backend`, rule S11, and its bits do not depend on where m and v lie.
Before it the pages of m and v are fetched on torch's current stream; afterwards they stay until
something else needs the memory. The moments are float32, whatever the parameter's type.

What is saved are copies on the CPU, so a checkpoint can be written while pages are away, and holds
what `torch.optim.AdamW` would hold. What is loaded, deep-copied or unpickled pages again.

Parameters that no managed memory belongs to have moments in ordinary memory beside them, with one
warning that says why: see `capability`.

>>> from qloracle_gpu.managed.memory import PlainMemory
>>> weight = torch.nn.Parameter(torch.ones(3))
>>> optimizer = PagedAdamW([weight], lr=0.5, weight_decay=0.0, memory=PlainMemory("a lesson"))
>>> weight.grad = torch.tensor([10.0, -1e-3, 0.0])
>>> optimizer.step()
>>> weight.detach()
tensor([0.5000, 1.5000, 1.0000])
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from qloracle import arguments as check
from qloracle.arguments import Array
from qloracle_gpu.managed.capability import warn_once
from qloracle_gpu.managed.memory import Memory, PlainMemory, best, in_torch
from qloracle_gpu.operations import arguments
from qloracle_gpu.torch_backend import adam_step
from qloracle_gpu.torch_backend.values import beside

CHUNK = 2**20  # elements that are stepped at a time: the new ones are made beside the old
MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch.optim names them
OTHER_METHODS = ("amsgrad", "maximize")  # of torch.optim.AdamW; their state means something else

Moments: TypeAlias = tuple[Array, Array]


class PagedAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, m and v in managed memory.

    params: tensors or groups of them, float32, float16 or bfloat16, as for every torch.optim
    optimizer; lr, eps, weight_decay at least 0; betas in [0, 1). memory: None for managed memory of
    each parameter's own device. TypeError or ValueError otherwise.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        memory: Memory | None = None,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            check.at_least(name, value, 0)
        for i, beta in enumerate(betas):
            check.fraction(f"betas[{i}]", beta)
        self.memory = memory
        self._memories: dict[torch.device, Memory] = {}
        self._paged: dict[Tensor, Moments] = {}
        form = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, form)

    # ---- the step ----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient; return what the closure returned, or None.

        ValueError for a sparse gradient or numbers that are not finite, TypeError for another type;
        no parameter is stepped then. On a GPU with kernels nothing looks at numbers.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(param, group) for group in self.param_groups for param in group["params"]]
        work = [(param, param.grad, group) for param, group in groups if param.grad is not None]
        for param, grad, _ in work:
            if grad.is_sparse:
                raise ValueError("grad must be dense, got a sparse one")
            arguments.floats(beside(param), "param", param)
            arguments.floats(beside(grad), "grad", grad)
        for param, _, _ in work:  # allocate first: a failure must change no parameter
            if not self.state[param]:
                zero = torch.zeros((), dtype=torch.float32).expand(param.shape)
                self._place(param, {"step": torch.tensor(0.0), **dict.fromkeys(MOMENTS, zero)})
        for param, grad, group in work:
            self._step(param, grad, group)
        return loss

    def _step(self, param: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, memory = self.state[param], self._memory_of(param)
        stream = torch.cuda.current_stream(param.device).cuda_stream if param.is_cuda else 0
        for moment in self._paged.get(param, ()):
            memory.prefetch(moment, stream=stream)
        flat, grad = param.detach().reshape(-1), gradient.reshape(-1)
        moments = [state[name].reshape(-1) for name in MOMENTS]
        beta1, beta2 = group["betas"]
        form = {"lr": group["lr"], "eps": group["eps"], "weight_decay": group["weight_decay"]}
        form |= {"step": int(state["step"]) + 1, "beta1": beta1, "beta2": beta2}
        with memory.kernel():
            for i in range(0, flat.numel(), CHUNK):
                old = [values[i : i + CHUNK] for values in (flat, grad, *moments)]
                new = adam_step(*old, **form)
                for values, result in zip((old[0], *old[2:]), new, strict=True):
                    values.copy_(result)
        if not param.is_contiguous():  # then `flat` is a copy
            param.copy_(flat.view(param.shape))
        state["step"] += 1

    # ---- where moments lie -------------------------------------------------------------------

    def _place(self, param: Tensor, values: dict[str, Any]) -> None:
        """Let a parameter have this state, its moments in managed memory where there is some."""
        moments = [self._room(param, i) for i in range(len(MOMENTS))]
        for moment, name in zip(moments, MOMENTS, strict=True):
            moment.copy_(values[name])
        step = torch.tensor(float(values["step"]))
        self.state[param] = {"step": step, **dict(zip(MOMENTS, moments, strict=True))}

    def _room(self, param: Tensor, i: int) -> Tensor:
        """Return memory for the i-th moment: what it has already, or new."""
        memory = self._memory_of(param)
        if isinstance(memory, PlainMemory):
            return torch.empty(param.shape, dtype=torch.float32, device=param.device)
        if param not in self._paged:
            m, v = (memory.empty(tuple(param.shape), "float32") for _ in MOMENTS)
            self._paged[param] = m, v
        return in_torch(self._paged[param][i])  # type: ignore[no-any-return]

    def _memory_of(self, param: Tensor) -> Memory:
        """Return the memory for a parameter's moments, asked for once a device."""
        place = param.device
        if place not in self._memories:
            memory = self.memory or best(place.index if param.is_cuda else None)
            self._memories[place] = _beside(place, memory)
        return self._memories[place]

    # ---- save and resume ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim.AdamW does, but as copies on the CPU."""
        whole = super().state_dict()
        states = whole["state"].items()
        return {**whole, "state": {i: _copied(state) for i, state in states}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`, or of a torch.optim.AdamW; it pages as before.

        ValueError for a state of other groups, shapes or methods; all stays as it was then.
        """
        states, groups = state_dict["state"], state_dict["param_groups"]
        keys = [key for group in groups for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        found = {p: states[n] for p, n in zip(params, keys, strict=False) if n in states}
        if len(keys) == len(params):  # else it is for torch to say so
            _check(found, groups)
        for param in found:  # allocate first: a failure must change nothing
            self._room(param, 0)
        groups_alone = {**state_dict, "state": {}}  # torch would copy m and v to plain memory first
        super().load_state_dict(groups_alone)
        for param, state in found.items():
            self._place(param, state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_paged" in self.__dict__:  # called by load_state_dict
            return
        self.memory, self._memories, self._paged = None, {}, {}
        for param, values in list(self.state.items()):
            self._place(param, values)

    def __getstate__(self) -> dict[str, Any]:
        whole = super().__getstate__()
        states = {param: _copied(state) for param, state in self.state.items()}
        return {**whole, "state": states}


def _beside(place: torch.device, memory: Memory) -> Memory:
    """Return the memory if a device's parameters go with it; else plain memory, with a warning."""
    if isinstance(memory, PlainMemory):
        return memory
    its = f"cuda:{memory.device}" if memory.on_cuda else "cpu"
    if str(place) == its:
        return memory
    reason = f"the parameters are on {place}, and managed memory is for {its}"
    warn_once(reason)
    return PlainMemory(reason)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state's tensors as copies on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def _check(found: dict[Tensor, dict[str, Any]], groups: list[dict[str, Any]]) -> None:
    """Refuse states of other parameters, or of another method than this."""
    for group in groups:
        for name in OTHER_METHODS:
            if group.get(name):
                raise ValueError(f"state_dict is of an optimizer with {name}, which this is not")
    for i, (param, state) in enumerate(found.items()):
        for name in MOMENTS:
            shape = tuple(state[name].shape) if name in state else None
            if shape != tuple(param.shape):
                raise ValueError(
                    f"state_dict has {name} of shape {shape} for parameter {i}, "
                    f"which has shape {tuple(param.shape)}"
                )
