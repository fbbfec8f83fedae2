"""Managed arrays in a file, written aside and renamed: a reader sees the old file or the new."""

import json
import os
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from qloracle.paging.pager import Managed, Pager

TYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}  # safetensors' own reader for NumPy does not know bfloat16


def save(
    path: str | Path, arrays: Mapping[str, Managed], metadata: Mapping[str, str] | None = None
) -> None:
    """Write managed arrays under their names, and metadata beside them, as a safetensors file.

    The host reads them, so their pages move to it. Everything goes into a file with ".partial"
    added to its name, which replaces the old file in one move once it is on the disk. A process
    killed before that leaves the old file whole, and the ".partial" for the next save to overwrite.

    TypeError for an array of any type but the nine of `TYPES`.

    >>> import tempfile
    >>> from qloracle.paging import make_pager
    >>> m = make_pager().empty((3,), np.float32)
    >>> m[...] = [1, 2, 3]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Path(folder, "state.safetensors"), {"m": m}, {"step": "7"})
    ...     arrays, metadata = load(Path(folder, "state.safetensors"), make_pager())
    >>> arrays["m"][...], metadata
    (array([1., 2., 3.], dtype=float32), {'step': '7'})
    """
    for name, array in arrays.items():
        if array.dtype not in TYPES.values():
            kinds = ", ".join(map(str, TYPES.values()))
            raise TypeError(f"{name} has dtype {array.dtype}; a file holds {kinds}")
    plain = {name: array[...] for name, array in arrays.items()}
    data = safetensors.numpy.save(plain, None if metadata is None else dict(metadata))
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else the name could reach the disk before the bytes do
    partial.replace(path)
    _sync_folder(path.parent)


def load(path: str | Path, pager: Pager) -> tuple[dict[str, Managed], dict[str, str]]:
    """Return the arrays of a file in managed memory of this pager, and the file's metadata.

    They come in the order of their names, and their pages start on the host. A damaged file raises
    safetensors' error, one that does not fit or holds another type ValueError; either way the pager
    is left as it was.
    """
    data = Path(path).read_bytes()
    arrays: dict[str, Managed] = {}
    try:
        for name, tensor in sorted(safetensors.deserialize(data), key=itemgetter(0)):
            if tensor["dtype"] not in TYPES:
                kinds = ", ".join(TYPES)
                raise ValueError(f"{name} has type {tensor['dtype']}; allowed: {kinds}")
            array = pager.empty(tensor["shape"], TYPES[tensor["dtype"]])
            arrays[name] = array
            array[...] = np.frombuffer(tensor["data"], array.dtype).reshape(array.shape)
    except BaseException:
        for array in arrays.values():
            pager.free(array)
        raise
    return arrays, _metadata(data)


def _metadata(data: bytes) -> dict[str, str]:
    """Return the metadata in the header: 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))


def _sync_folder(folder: Path) -> None:
    """Flush the new name to the disk, where the system can open folders."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
