"""Functions that the scripts of pagers bring along, as text."""

import inspect
import re

from qloracle_conformance.calling.steps import adam_step, adam_step_8bit, run_steps
from qloracle_conformance.contract import books

PLAIN = """\
class Plain:
    plain = True

    def __init__(self, *sizes, **named):
        pass

    def empty(self, shape, dtype):
        return {zeros}

    @contextlib.contextmanager
    def use(self, *arrays):
        yield arrays

    def nothing(self, *arguments, **named):
        pass

    free = prefetch = advise = shrink = nothing
"""

ON_NUMPY = """\
def on_numpy(step_of):
    def step(*arrays, **numbers):
        return [give(values) for values in step_of(*map(take, arrays), **numbers)]

    return step
"""

FILES = """\
FILES = {{}}


def save_state(file, pager, arrays):
    own = not hasattr(pager, "plain") and hasattr(implementation, "save_paged")
    if own and hasattr(implementation, "load_paged"):
        FILES[file] = os.path.join(tempfile.mkdtemp(), file)
        implementation.save_paged(FILES[file], arrays, {{"file": file}})
    else:
        FILES[file] = {{name: {read}(array[...]) for name, array in arrays.items()}}


def load_state(file, pager):
    if isinstance(FILES[file], str):
        arrays, words = implementation.load_paged(FILES[file], pager)
        return arrays, dict(words)
    arrays = {{}}
    for name, values in FILES[file].items():
        arrays[name] = pager.empty(values.shape, {dtype})
        arrays[name][...] = {given}
    return arrays, {{"file": file}}
"""

SHOWN = f"""\
SIZES = {books.SIZES}
COUNTERS = {books.COUNTERS}


{inspect.getsource(books.books_of)}

{inspect.getsource(books.whole_number)}

def shown(pager):
    return types.SimpleNamespace(**books_of(pager))
"""

OURS = (  # as they stand in the kit
    adam_step, adam_step_8bit, run_steps, books.if_offered, books.pages_came, books.pages_went,
    books.pages_freed,
)  # fmt: skip


def needed(text: str, framework: str) -> str:
    """The functions that a script calls, and those that they call, each before its callers."""
    numpy, torch = framework == "numpy", framework == "torch"
    device = ", device=DEVICE" * (framework != "cupy")
    zeros = "np.zeros(shape, dtype)" if numpy else f"{framework}.zeros(shape, dtype=dtype{device})"
    dtype = "getattr(torch, str(values.dtype))" if torch else "values.dtype"
    files = {"dtype": dtype, "given": "give(values)" if torch else "values"}
    parts = {function.__name__: inspect.getsource(function) for function in OURS}
    parts |= {"Plain": PLAIN.format(zeros=zeros), "on_numpy": ON_NUMPY, "shown": SHOWN}
    parts |= {"save_state": FILES.format(read="np.array" if numpy else "take", **files)}
    found = ""
    for name, source in reversed(parts.items()):
        if re.search(rf"(?<![.\w]){name}[(),]", f"{found}{text}"):
            found = f"{source}\n\n{found}"
    return found
