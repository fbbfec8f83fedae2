r"""The faults: what is wrong, where, and which runners must see it.

`faults.diff` has them all, each a head, a story, and edits of the text as a diff writes them:

>>> fault, = read('''
... @@ maximum over the warp | quantize | host ptx
... all blocks of a warp share one absmax
... -group_max(largest, lanes)
... +warp_max(largest)
... ''')
>>> fault.name, fault.case, fault.seen_by
('maximum over the warp', 'quantize', ('host', 'ptx'))
>>> fault.edits
(Edit(old='group_max(largest, lanes)', new='warp_max(largest)', times=1),)

Lines that begin with a space stand in both texts, and `...` separates two edits.  A fourth part of
the head is `twice`, where the text holds the edited lines twice, or the compiler's options.

A value that is wrong is seen by whatever runs the kernel.  The others differ:

    host     barriers, shuffles, alignment, memory close behind a result, the order of an index
    address  every byte beyond an array, be it global or shared
    thread   what only the order of threads hides; lanes of ptx run in step, which hides it, too
    ptx      what NVIDIA's compiler does under its options, and every byte beyond an array
    gate     what costs speed and changes no value: registers, spills, local memory
"""

from collections.abc import Iterator, Sequence
from importlib.resources import files

from qloracle_gpu import kernels
from qloracle_gpu.proof.faults.cases import CASES
from qloracle_gpu.proof.faults.planting import Edit, Fault


def read(text: str) -> Iterator[Fault]:
    """Yield the faults of a text."""
    for part in f"\n{text}".split("\n@@ ")[1:]:
        head, story, *diff = part.rstrip("\n").split("\n", 2)
        name, case, seen_by, *more = head.split(" | ")
        times = 2 if more == ["twice"] else 1
        options = tuple(more[0].split()) if more and times == 1 else kernels.OPTIONS
        edits = tuple(
            _edit(each.split("\n"), times) for each in "".join(diff).split("\n...\n") if each
        )
        yield Fault(name, story, case, tuple(seen_by.split()), edits, options)


def _edit(lines: Sequence[str], times: int) -> Edit:
    old, new = ("\n".join(x[1:] for x in lines if x[0] in signs) for signs in ("- ", "+ "))
    return Edit(old, new, times)


FAULTS = tuple(read((files(__package__) / "faults.diff").read_text("utf-8")))
UNCHANGED = tuple(Fault(f"unchanged: {case}", "as it is", case, ()) for case in CASES)


def named(name: str) -> Fault:
    """Return a fault, or the unchanged text on a case, by its name; ValueError for another."""
    found = {fault.name: fault for fault in (*FAULTS, *UNCHANGED)}
    if name not in found:
        raise ValueError(f"name must be one of {', '.join(found)}; got {name!r}")
    return found[name]
