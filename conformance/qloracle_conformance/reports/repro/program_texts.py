"""Functions that the scripts of pagers bring along, as text."""

import inspect

from qloracle_conformance.contract.books import COUNTERS, SIZES, books_of, whole_number

STEPS = """\
def run_steps(pager, step_of, handles, sizes, grads, counts, part):
    for step in counts:
        grad, n = grads[step % len(grads)], grads.shape[1]
        with pager.use(*handles) as arrays:
            for low in range(0, n, part or n):
                high = min(low + (part or n), n)
                parts = [slice(low // size, -(-high // size)) for size in sizes]
                old = [array[where] for array, where in zip(arrays, parts)]
                new = step_of(old[0], grad[low:high], *old[1:], step=step, lr={lr})
                for array, where, values in zip(arrays, parts, new):
                    array[where] = values


class Plain:
    plain = True

    def __init__(self, *sizes, **named):
        pass

    def empty(self, shape, dtype):
        return {empty}

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
FILES = {}


def save_state(file, pager, arrays):
    own = not hasattr(pager, "plain") and hasattr(implementation, "save_paged")
    if own and hasattr(implementation, "load_paged"):
        FILES[file] = os.path.join(tempfile.mkdtemp(), file)
        implementation.save_paged(FILES[file], arrays, {"file": file})
    else:
        FILES[file] = {name: READ(array[...]) for name, array in arrays.items()}


def load_state(file, pager):
    if isinstance(FILES[file], str):
        arrays, words = implementation.load_paged(FILES[file], pager)
        return arrays, dict(words)
    arrays = {}
    for name, values in FILES[file].items():
        arrays[name] = pager.empty(values.shape, EMPTY)
        arrays[name][...] = GIVE
    return arrays, {"file": file}


"""

SHOWN = f"""\
SIZES = {SIZES}
COUNTERS = {COUNTERS}


{inspect.getsource(books_of)}

{inspect.getsource(whole_number)}

def shown(pager):
    return types.SimpleNamespace(**books_of(pager))


"""

FREED = """\
def pages_freed(before, after, page, pages):
    lost = (before.resident_bytes - after.resident_bytes) // page
    moved = [x.faults + x.prefetched - x.evictions - x.host_faults - x.host_prefetched
             for x in (before, after)]
    return min(max(lost + moved[1] - moved[0], 0), pages)


"""
