"""What the operations of a program do to a pager, a method for each verb (`contract.programs`).

All of this needs only NumPy, and stands as it is in the scripts that reproduce a failure.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: D102
import contextlib
import pathlib
import tempfile

import numpy as np

from qloracle_conformance.calling.steps import run_steps
from qloracle_conformance.contract.books import if_offered


class Operations:
    """A pager, its arrays by name and what was read; `kind` hands arrays over and takes them."""

    def __init__(self, target, data, kind):
        self.target, self.data, self.kind = target, data, kind
        self.handles, self.freed, self.uses, self.files, self.found = {}, set(), {}, {}, []
        self.open_ones = contextlib.ExitStack()  # each `use`, and the folders of files

    def make(self, capacity, page):
        sizes = {"capacity_bytes": capacity, "page_bytes": page}
        given = {name: n for name, n in sizes.items() if n is not None}
        self.pager = self.target.make_pager(**given)

    def perform(self, operation):
        verb, *arguments = operation
        return getattr(self, verb)(*arguments) if hasattr(self, verb) else None

    @contextlib.contextmanager
    def seen(self, name, side):
        """An array as the host sees it, or a step in a `use` of its own, or in an open one."""
        if side == "host":
            yield self.handles[name]
        elif side == "device":
            with self.pager.use(self.handles[name]) as arrays:
                yield arrays[0]
        else:
            label, _, i = side.partition(".")
            yield self.uses[label][1][int(i)]

    # ---- verbs ---------------------------------------------------------------------------------

    def empty(self, name, shape, dtype):
        self.handles[name] = self.pager.empty(tuple(shape), self.kind.dtype(dtype))

    def write(self, name, part, data, side):
        values = self.kind.given(self.data[data], side)
        with self.seen(name, side) as array:
            array[slice(*part) if part else ...] = values

    def read(self, name, part, side):
        with self.seen(name, side) as array:
            self.found.append(self.kind.take(array[slice(*part) if part else ...]))
        return self.found[-1]

    def open(self, label, names):
        stack = contextlib.ExitStack()
        arrays = stack.enter_context(self.pager.use(*(self.handles[name] for name in names)))
        self.uses[label] = stack, arrays
        self.open_ones.push(stack)

    def close(self, label):
        self.uses.pop(label)[0].close()

    def step(self, function, names, grads, first, count, part):
        step_of = self.kind.step(self.target, function)
        handles, counts = [self.handles[name] for name in names], range(first, first + count)
        with np.errstate(all="ignore"):  # what a faulty pager reads may be anything
            run_steps(self.pager, step_of, handles, self.kind.given(self.data[grads]), counts, part)

    def prefetch(self, name, to):
        if to == "device":
            return self.pager.prefetch(self.handles[name])
        return if_offered(self.pager, "prefetch", self.handles[name], to=to)

    def advise(self, name, preferred, mostly):
        advice = {"preferred": preferred, "read_mostly": mostly}
        return if_offered(self.pager, "advise", self.handles[name], **advice)

    def shrink(self, capacity):
        return if_offered(self.pager, "shrink", capacity)

    def free(self, name):
        self.pager.free(self.handles[name])
        self.freed.add(name)

    def save(self, file):
        alive = {name: array for name, array in self.handles.items() if name not in self.freed}
        if not hasattr(self.target, "save_paged") or not hasattr(self.target, "load_paged"):
            self.files[file] = {name: self.kind.take(a[...]) for name, a in alive.items()}
            return
        if file not in self.files:
            folder = self.open_ones.enter_context(tempfile.TemporaryDirectory())
            self.files[file] = pathlib.Path(folder) / file
        self.target.save_paged(self.files[file], alive, {"file": file})

    def load(self, file, capacity, page):
        self.handles, self.freed, saved, words = {}, set(), self.files[file], {"file": file}
        self.make(capacity, page)
        if not isinstance(saved, dict):
            self.handles, words = self.target.load_paged(saved, self.pager)
            saved = {}
        for name, values in saved.items():
            self.empty(name, values.shape, values.dtype.name)
            self.handles[name][...] = self.kind.given(values, "host")
        return [sorted(self.handles), dict(words)]

    def must_fail(self, operation):
        """Return what its error says."""
        before = len(self.found)
        try:
            said = NotImplemented if self.perform(operation) is NotImplemented else ""
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        del self.found[before:]
        return said


class Plain:
    """A pager that pages nothing, and the kind of its arrays: NumPy's; steps are another one's."""

    def __init__(self, target, kind):
        self.target, self.kind = target, kind

    def make_pager(self, **sizes):
        return self

    def empty(self, shape, dtype):
        return np.zeros(shape, dtype)

    def use(self, *arrays):
        return contextlib.nullcontext(arrays)

    def nothing(self, *arguments, **named):
        pass

    free = prefetch = advise = shrink = nothing

    def dtype(self, name):
        return np.dtype(name)

    def given(self, values, side="device"):
        return values

    def take(self, values):
        return np.array(values)

    def step(self, target, function):
        return through(self.kind.step(self.target, function), self.kind.given, self.kind.take)


def through(step_of, there, back):
    """A step on arrays of another kind than it is written for."""

    def step(*arrays, **numbers):
        return [back(values) for values in step_of(*map(there, arrays), **numbers)]

    return step
