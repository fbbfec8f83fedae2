"""The part of a repro script that hands arrays over to a framework and reads its results.

A script for an implementation on NumPy arrays needs nothing of this: there `fresh` makes copies.
"""

from qloracle_conformance.calling.frameworks import DELAY, OFFSET, POISON, device_for
from qloracle_conformance.contract.cases import Case
from qloracle_conformance.contract.protocol import result_forms
from qloracle_conformance.engine.runs import Failure
from qloracle_conformance.reports.repro.literals import string, type_name

MOVE = {
    "torch": "torch.from_numpy({bits}).to(DEVICE)",
    "cupy": "cupy.asarray({bits})",
    "jax": "jax.device_put(array, jax.devices(DEVICE)[0])",
}
MOVE_BITS = {"torch": ".view(torch.bfloat16)", "cupy": ".view(array.dtype)"}
READ = {"torch": "result.detach().cpu().numpy()", "cupy": "result.get()"}
MOVE_BFLOAT16 = """\
    if array.dtype == ml_dtypes.bfloat16:  # by its bits
        return {moved}
"""
READ_BFLOAT16 = """\
    if result.dtype == torch.bfloat16:
        return result.detach().cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
"""
POISONED = f"""\
def poisoned(shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.full(size, {POISON}, np.uint8).view(dtype).reshape(shape)


"""
STRIDED = """\
    whole = move(poisoned((*array.shape[:-1], 2 * array.shape[-1]), array.dtype))
    view = whole[..., ::2]
"""
SHIFTED = """\
    whole = move(poisoned(array.size + {padding}, array.dtype))
    view = whole[{start} : {start} + array.size].reshape(array.shape)
"""
GIVE = """\
def give(array):
    if not array.size{scalar}:
        return move(array)
{view}    view[...] = move(array)
    return view


"""
TRANSPOSED = """\
def give(array):
    view = move(array.T.copy())
    return view.{transpose}(*range(array.ndim)[::-1]) if array.ndim > 1 else move(array)


"""
EXPANDED = """\
def give(array):
    flat = array.reshape(-1)
    if not array.size or (flat != flat[0]).any():
        return move(array)
    return {expand}


"""
EXPAND = {
    "torch": "move(flat[:1].copy()).expand(array.shape)",
    "cupy": "cupy.broadcast_to(move(flat[:1].copy()), array.shape)",
}
SIDE_STREAM = f"""\
def on_a_side_stream(tensors, function):
    stream, late = torch.cuda.Stream(DEVICE), [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.fill_({POISON})
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep({DELAY})  # the inputs arrive late
        for tensor, values in zip(tensors, late):
            tensor.copy_(values, non_blocking=True)
        results = function(*tensors)
        stream.synchronize()
    return results


"""


def functions(framework: str, device: str, failure: Failure) -> list[str]:
    """The functions `move`, `give` and `take` of a script, as far as the failure needs them."""
    case, form = failure.case, failure.case.form
    out = POISONED if form == "out" else ""
    if framework == "numpy":
        return out.splitlines()
    types = [array.dtype.name for array in case.arrays.values()]
    bits = "bfloat16" in (*types, case.options.get("dtype"), failure.mismatch.got[:8])
    moved = MOVE[framework].format(bits="array")
    view = {"torch": "array.view(np.int16)", "cupy": "array.view(np.uint16)"}.get(framework)
    lines = [f"DEVICE = {string(device_for(device, form))}\n\n\ndef move(array):\n"]
    if bits and view:
        text = MOVE[framework].format(bits=view) + MOVE_BITS[framework]
        lines.append(MOVE_BFLOAT16.format(moved=text))
    lines.append(f"    return {moved}\n\n\n")
    lines.append("def take(result):\n")
    lines += [READ_BFLOAT16] if bits and framework == "torch" else []
    lines.append(f"    return {READ.get(framework, 'np.asarray(result)')}\n\n\n")
    return "".join([*lines, out, _give(framework, case)]).splitlines()


def _give(framework: str, case: Case) -> str:
    """How an array gets the form in which the call failed."""
    match case.form:
        case "strided":
            return POISONED + GIVE.format(scalar=" or not array.ndim", view=STRIDED)
        case "transposed":
            axes = "permute" if framework == "torch" else "transpose"
            return TRANSPOSED.format(transpose=axes)
        case "expanded":
            return EXPANDED.format(expand=EXPAND[framework])
        case "offset" | "unaligned":
            start = OFFSET[case.form]
            return POISONED + GIVE.format(
                scalar="", view=SHIFTED.format(start=start, padding=2 * start)
            )
        case "side_stream":
            return f"give = move\n\n\n{SIDE_STREAM}"
    return "give = move\n\n\n"


def buffers(case: Case, give: str) -> str:
    """What a call passes as `out`: buffers that hold other bits before."""
    forms = result_forms(case.function, case.arrays, case.options)
    found = [f"{give}(poisoned({form.shape}, {type_name(form.dtype)}))" for form in forms]
    return f"({', '.join(found)})" if len(found) > 1 else found[0]
