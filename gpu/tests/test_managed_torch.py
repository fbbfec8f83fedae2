"""PagedAdamW in the hands of torch: groups, schedules, closures, hooks, checkpoints."""

import copy
import gc
import io
import pickle

import numpy as np
import pytest

import qloracle as q
from qloracle_gpu.managed import memory as memories
from qloracle_gpu.managed import standin
from qloracle_gpu.managed.memory import PlainMemory, block_of
from qloracle_gpu.managed.standin import StandinMemory, runtimes
from qloracle_gpu.managed.standin.runtimes import Device

torch = pytest.importorskip("torch", reason="torch is not installed")

f32 = np.float32
PAGE = 4096
SHAPES = ((300, 7), (5000,), ())
OPTIONS = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.1}

reason = standin.unavailable()
pytestmark = pytest.mark.skipif(bool(reason), reason=reason or "the stand-in is there")


def small_device():
    """Memory of a device that holds two pages of the fifteen that these states take."""
    return StandinMemory(Device(runtimes.runtime(), 2 * PAGE, PAGE))


def paged_adamw(params, memory=None, **options):
    from qloracle_gpu.managed.torch_adamw import PagedAdamW

    return PagedAdamW(params, memory=memory or small_device(), **OPTIONS | options)


def parameters():
    rng = np.random.default_rng(5)
    return [torch.nn.Parameter(torch.tensor(rng.standard_normal(s).astype(f32))) for s in SHAPES]


def gradient(step, i):
    return np.random.default_rng([step, i]).standard_normal(SHAPES[i]).astype(f32)


def train(params, optimizer, steps, after=lambda: None):
    for step in steps:
        for i, param in enumerate(params):
            param.grad = torch.tensor(gradient(step, i))
        optimizer.step()
        after()


def whole_state(params, optimizer):
    """All numbers of a training, as bytes."""
    states = [optimizer.state[param] for param in params]
    moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
    steps = [int(state["step"]) for state in states]
    return steps, [t.detach().clone().numpy().tobytes() for t in (*params, *moments)]


def assert_paged(params, optimizer, memory):
    """The moments lie in this managed memory, and its pages come and go with a step."""
    for param in params:
        blocks = {block_of(moment).pointer for moment in optimizer._paged[param]}
        assert {optimizer.state[param][n].data_ptr() for n in ("exp_avg", "exp_avg_sq")} == blocks
        assert all(block_of(moment).owner is memory for moment in optimizer._paged[param])
    before = memory.standin.books().counters
    train(params, optimizer, [99])
    after = memory.standin.books().counters
    assert after.prefetched > before.prefetched
    assert after.evictions > before.evictions


# ---- groups --------------------------------------------------------------------------------------


def test_groups_have_options_of_their_own_and_may_come_later():
    params = parameters()
    options = [OPTIONS, OPTIONS | {"lr": 0.1, "betas": (0.5, 0.9)}, OPTIONS | {"weight_decay": 0.0}]
    first, second, third = ({"params": [p], **o} for p, o in zip(params, options, strict=True))
    optimizer = paged_adamw([first, second])
    expected = [[p.detach().numpy().copy(), *np.zeros((2, *p.shape), f32)] for p in params]
    for step in range(1, 7):
        if step == 3:
            optimizer.add_param_group(third)
        train(params, optimizer, [step])
        for i, o in enumerate(options):
            count = step - 2 if i == 2 else step
            if count > 0:
                beta1, beta2 = o["betas"]
                form = {name: o[name] for name in ("lr", "eps", "weight_decay")}
                p, *moments = expected[i]
                form |= {"step": count, "beta1": beta1, "beta2": beta2}
                expected[i] = q.adam_step(p, gradient(step, i), *moments, **form)
    steps, found = whole_state(params, optimizer)
    assert steps == [6, 6, 4]
    flat = [p for p, _, _ in expected] + [moment for _, m, v in expected for moment in (m, v)]
    assert found == [np.asarray(values).tobytes() for values in flat]


def test_a_parameter_of_two_groups_is_refused_as_by_torch():
    params = parameters()
    optimizer = paged_adamw(params)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [params[0]]})


def test_named_parameters_are_taken_and_their_names_saved():
    params = parameters()
    names = ["first", "second", "third"]
    optimizer = paged_adamw(list(zip(names, params, strict=True)))
    train(params, optimizer, range(2))
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == names
    again = parameters()
    resumed = paged_adamw(list(zip(names, again, strict=True)))
    resumed.load_state_dict(saved)
    assert whole_state(again, resumed)[1][3:] == whole_state(params, optimizer)[1][3:]


# ---- schedules -----------------------------------------------------------------------------------

schedulers = torch.optim.lr_scheduler
SCHEDULES = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "steps": lambda o: schedulers.StepLR(o, 2, 0.5),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 8),
    "one cycle, of beta1 too": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=12),
    "warm-up, then cosine": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=3), schedulers.CosineAnnealingLR(o, 6)], [3]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # SequentialLR's own
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_do_what_they_do_to_torch_s_own_optimizer(schedule):
    """The same rates and betas at each step, and the bits of the same steps in plain memory."""
    ours, plain, theirs = parameters(), parameters(), parameters()
    optimizers = [
        paged_adamw(ours),
        paged_adamw(plain, PlainMemory("a test")),
        torch.optim.AdamW(theirs, **OPTIONS),
    ]
    seen = [[], [], []]
    for params, optimizer, rates in zip((ours, plain, theirs), optimizers, seen, strict=True):
        scheduler = SCHEDULES[schedule](optimizer)
        group = optimizer.param_groups[0]

        def turn(scheduler=scheduler, group=group, rates=rates):
            rates.append((group["lr"], group["betas"]))
            scheduler.step()

        train(params, optimizer, range(10), after=turn)
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) > 2
    assert whole_state(ours, optimizers[0]) == whole_state(plain, optimizers[1])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_schedule_on_a_plateau_lowers_the_rate():
    params = parameters()
    optimizer = paged_adamw(params)
    scheduler = schedulers.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    train(params, optimizer, range(3), after=lambda: scheduler.step(1.0))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(OPTIONS["lr"] * 0.01)


# ---- what a training loop calls ------------------------------------------------------------------


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(to_none):
    params = parameters()
    optimizer = paged_adamw(params)
    train(params, optimizer, range(2))
    expected = whole_state(params, optimizer)
    optimizer.zero_grad(set_to_none=to_none)
    assert all(p.grad is None if to_none else not p.grad.any() for p in params)
    assert whole_state(params, optimizer) == expected
    optimizer.step()
    steps, found = whole_state(params, optimizer)
    assert (steps == [2, 2, 2]) == to_none  # a gradient of zero is one
    assert (found == expected[1]) == to_none


def test_a_closure_computes_its_gradients_and_its_loss_comes_back():
    def trained(in_closure):
        torch.manual_seed(0)
        layer = torch.nn.Linear(40, 30)
        x, y = torch.randn(16, 40), torch.randn(16, 30)
        optimizer, losses = paged_adamw(layer.parameters()), []

        def loss_of():
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(layer(x), y)
            loss.backward()
            return loss

        for _ in range(20):
            if in_closure:
                with torch.no_grad():  # `step` turns gradients on again
                    losses.append(optimizer.step(loss_of).item())
            else:
                losses.append(loss_of().item())
                assert optimizer.step() is None
        return losses, whole_state(list(layer.parameters()), optimizer)

    losses, state = trained(in_closure=True)
    assert losses[-1] < 0.5 * losses[0]
    assert (losses, state) == trained(in_closure=False)


def test_a_closure_that_raises_changes_nothing():
    params = parameters()
    optimizer = paged_adamw(params)
    train(params, optimizer, range(2))
    expected = whole_state(params, optimizer)

    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(broken)
    assert whole_state(params, optimizer) == expected


def test_hooks_are_called():
    params, calls = parameters(), []
    optimizer = paged_adamw(params)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    train(params, optimizer, range(1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before", "after", "saved", "loaded"]


def test_a_scaler_of_gradients_skips_a_step_that_overflowed():
    params = parameters()
    optimizer, scaler = paged_adamw(params), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for scale in (1.0, torch.inf, 1.0):
        loss = sum((p * scale).sum() for p in params)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert whole_state(params, optimizer)[0] == [2, 2, 2]


# ---- checkpoints ---------------------------------------------------------------------------------


def by_torch_save(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS = {
    "as it is": lambda state: state,
    "deep copy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "torch.save": by_torch_save,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_state_that_went_another_way_resumes_bit_equal_and_pages(way):
    """With its schedule, into an optimizer that had other options and steps behind it."""
    params = parameters()
    optimizer = paged_adamw(params)
    scheduler = schedulers.CosineAnnealingLR(optimizer, 20)
    train(params, optimizer, range(10), after=scheduler.step)
    saved = WAYS[way](optimizer.state_dict() | {"schedule": scheduler.state_dict()})
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    train(params, optimizer, range(10, 20), after=scheduler.step)

    others, memory = parameters(), small_device()
    resumed = paged_adamw(others, memory, lr=1.0, weight_decay=0.0)
    later = schedulers.CosineAnnealingLR(resumed, 20)
    train(others, resumed, range(3))
    for other, value in zip(others, again, strict=True):
        other.data.copy_(value)
    later.load_state_dict(saved.pop("schedule"))
    resumed.load_state_dict(saved)
    taken = memories._live[memory.runtime, memory.device]
    train(others, resumed, range(10, 20), after=later.step)
    assert whole_state(others, resumed) == whole_state(params, optimizer)
    assert memories._live[memory.runtime, memory.device] == taken
    assert_paged(others, resumed, memory)


def test_a_resume_that_loses_its_paging_is_found():
    """The planted fault of the test above: what torch's own `load_state_dict` would do."""
    params, memory = parameters(), small_device()
    optimizer = paged_adamw(params, memory)
    train(params, optimizer, range(3))
    assert_paged(params, optimizer, memory)
    torch.optim.Optimizer.load_state_dict(optimizer, optimizer.state_dict())
    with pytest.raises(AssertionError):
        assert_paged(params, optimizer, memory)


def test_loading_again_and_again_takes_no_more_memory():
    params, memory = parameters(), small_device()
    optimizer = paged_adamw(params, memory)
    train(params, optimizer, range(3))
    key = memory.runtime, memory.device
    taken, expected = memories._live[key], whole_state(params, optimizer)
    assert taken == 2 * 4 * sum(p.numel() for p in params)
    for _ in range(3):
        optimizer.load_state_dict(optimizer.state_dict())
    assert memories._live[key] == taken
    assert whole_state(params, optimizer) == expected
    assert_paged(params, optimizer, memory)


def test_a_state_from_before_the_first_step_begins_anew():
    params, fresh = parameters(), parameters()
    optimizer, other = paged_adamw(params), paged_adamw(fresh)
    train(params, optimizer, range(3))
    optimizer.load_state_dict(other.state_dict())
    for param, value in zip(params, fresh, strict=True):
        param.data.copy_(value)
    train(params, optimizer, range(3))
    train(fresh, other, range(3))
    assert whole_state(params, optimizer) == whole_state(fresh, other)


def test_memory_goes_with_the_optimizer():
    params, memory = parameters(), small_device()
    optimizer = paged_adamw(params, memory)
    train(params, optimizer, range(1))
    key = memory.runtime, memory.device
    assert memories._live[key] > 0
    del optimizer
    gc.collect()
    assert memories._live[key] == 0
