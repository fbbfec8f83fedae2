"""Launches of small_kernels.cu, each with what it must give; run in a sanitizer's process too."""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from qloracle_gpu.devices import Addresses
from qloracle_gpu.devices.gcc import Host

N, THREADS = 300, 64
GRID = -(-N // THREADS)
X = np.random.default_rng(5).standard_normal(N).astype(np.float32)
SIZE = np.int64(N)


def scale_add(host):
    y = host.cast(X, "float32").copy()
    host.launch("scale_add", GRID, THREADS, np.float32(0.3), X, y, SIZE)
    return y, np.float32(0.3) * X + X


def sum_blocks(host):
    sums = host.empty((GRID,), "float32")
    host.launch("sum_blocks", GRID, THREADS, X, sums, SIZE)
    part = np.zeros((GRID, THREADS), np.float32)
    part.reshape(-1)[:N] = X
    while part.shape[1] > 1:
        part = part[:, : part.shape[1] // 2] + part[:, part.shape[1] // 2 :]
    return sums, part[:, 0]


def max_of_warps(host):
    maxima = host.empty((2 * GRID,), "float32")
    host.launch("max_of_warps", GRID, THREADS, X, maxima, SIZE)
    return maxima, np.maximum.reduceat(np.abs(X), range(0, N, 32))


def swap_halves(host):
    out = host.empty((THREADS,), "float32")
    host.launch("swap_halves", 1, THREADS, X, out)
    return out, X[:THREADS].reshape(2, 2, 16)[:, ::-1].reshape(-1)


def copy_words(host):
    to = host.empty((N // 4 * 4,), "float32")
    host.launch("copy_words", 2, THREADS, X, to, np.int64(N // 4))
    return to, X[: N // 4 * 4]


def round_to_bfloat16(host):
    y = host.empty((N,), "bfloat16")
    host.launch("round_to_bfloat16", GRID, THREADS, X, y, SIZE)
    return y, X.astype(ml_dtypes.bfloat16)


def add_tables(host):
    total = host.empty((32,), "float32")
    tables = Addresses((X, None, X[64:]))
    host.launch("add_tables", 1, 32, tables, total, np.int32(3))
    return total, (X[:32] + np.float32(1)) + X[64:96]


CALLS = {
    call.__name__: call
    for call in (
        *(scale_add, sum_blocks, max_of_warps, swap_halves),
        *(copy_words, round_to_bfloat16, add_tables),
    )
}


def run(flavour, path, *names):
    """Launch kernels of a text in a file; what they give is not looked at."""
    host = Host(Path(path).read_text(), flavour)
    for name in names or CALLS:
        CALLS[name](host)


def run_late(flavour, path):
    """Load words from an address that is one float too late."""
    host = Host(Path(path).read_text(), flavour)
    to = host.empty((8,), "float32")
    host.launch("copy_words", 1, 32, X[1:9], to, np.int64(2))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
