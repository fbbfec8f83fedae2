"""Try one fault on one runner, in a process of its own: a kernel that is wrong may end it.

    python -m qloracle_gpu.proof.faults.attempt RUNNER NAME

prints a line `verdict: KIND: detail`.  A sanitizer runs it in a process that it watches.
"""

import sys
from collections.abc import Iterator, Sequence

from qloracle_gpu import compiling, kernels
from qloracle_gpu.compiling.errors import CompileError
from qloracle_gpu.devices import Device, ptx
from qloracle_gpu.devices import gcc as host
from qloracle_gpu.proof import gate
from qloracle_gpu.proof.faults.cases import CASES, Case, wrong
from qloracle_gpu.proof.faults.listed import named
from qloracle_gpu.proof.faults.planting import Fault, narrowed, planted

SIGN = "verdict: "
ARCH = "sm_90"


def attempt(runner: str, name: str) -> None:
    """Print what a runner sees of a fault, or of the unchanged text."""
    fault = named(name)
    try:
        kind, detail = _look(runner, fault, CASES[fault.case])
    except (host.KernelError, ptx.KernelFault) as error:
        kind, detail = "error", str(error)
    except ptx.UnknownInstruction as error:
        kind, detail = "refused", str(error)
    except (host.CompileError, CompileError) as error:
        kind, detail = "does not compile", str(error)
    print(f"\n{SIGN}{kind}: {' '.join(detail.split())}", flush=True)


def _look(runner: str, fault: Fault, case: Case) -> tuple[str, str]:
    source = case.prefix + narrowed(planted(kernels.text(), fault), case.kernels)
    machines: Sequence[Device]
    if runner == "gate":
        for problem in _problems(source, fault):
            return "refused", problem
        machines = ()
    elif runner == "ptx":
        machines = [ptx.Ptx(source, options=fault.options)]
    elif runner == "host":  # threads in their order, and in two others
        machines = [host.Host(source, seed=seed) for seed in (0, 1, 2)]
    else:
        machines = [host.Host(source, "address" if runner == "address" else "thread")]
    for machine in machines:
        difference = wrong(machine, case)
        if difference:
            return "wrong value", difference
    return "not seen", ""


def _problems(source: str, fault: Fault) -> Iterator[str]:
    """Yield the gate's objections to this source, of the kernels that are there."""
    by = compiling.compiler()
    found = {ARCH: compiling.resources(source, 90, fault.options, by)}
    known = (gate.recorded(by) or {}).get(ARCH, {})
    limits = {ARCH: {name: known[name] for name in found[ARCH] if name in known}}
    ptx_text = compiling.ptx(source, 90, fault.options, by)
    yield from gate.memory_problems(found)
    if known:
        yield from gate.register_problems(found, limits)
    yield from gate.arithmetic_problems(source, ptx_text)


if __name__ == "__main__":
    attempt(*sys.argv[1:])
