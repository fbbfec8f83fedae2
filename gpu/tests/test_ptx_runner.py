"""The interpreter of PTX: right on small texts of its own, and every planted fault is an error."""

from fractions import Fraction

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import qloracle as q
from qloracle_gpu import compiling, operations
from qloracle_gpu.devices import Addresses
from qloracle_gpu.devices.ptx import KernelFault, Ptx, UnknownInstruction, arithmetic
from qloracle_gpu.devices.ptx.parse import parse

try:
    compiling.compiler()
except compiling.NoCompiler as reason:
    pytest.skip(f"nothing makes PTX here: {reason}", allow_module_level=True)

HEAD = """
#define KERNEL extern "C" __global__ void
#define EACH long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x
"""
ARCHS = (75, 90, 100)
bfloat16 = ml_dtypes.bfloat16
fixed = settings(derandomize=True, deadline=None, max_examples=50)
rng = np.random.default_rng(5)


def run(source, kernel, grid, block, *arguments, arch=90, options=()):
    Ptx(HEAD + source, arch, options).launch(kernel, grid, block, *arguments)


def equal(got, expected):
    """Every bit, but for the payload of a NaN."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    both_nan = np.isnan(got) & np.isnan(expected) if got.dtype.kind == "f" else False
    bits = f"u{got.dtype.itemsize}"
    np.testing.assert_array_equal(np.where(both_nan, 0, got.view(bits) ^ expected.view(bits)), 0)


# ---- texts that are right ------------------------------------------------------------------------

SAXPY = """
KERNEL saxpy(float a, const float *x, float *y, long long n) {
  EACH;
  if (i < n) y[i] = a * x[i] + y[i];
}
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_saxpy_rounds_twice(arch):
    x, y = rng.standard_normal((2, 30_000)).astype(np.float32)
    expected = np.float32(0.3) * x + y
    run(SAXPY, "saxpy", 300, 101, np.float32(0.3), x, y, np.int64(x.size), arch=arch)
    equal(y, expected)


def test_contraction_shows_and_is_a_fused_multiply_add():
    a, (x, y) = np.float32(0.3), rng.standard_normal((2, 999)).astype(np.float32)
    before, separate = y.copy(), a * x + y
    run(SAXPY, "saxpy", 8, 128, a, x, y, np.int64(999), options=("-std=c++17",))
    assert (y != separate).any()
    for i in range(999):
        exact = Fraction(float(a)) * Fraction(float(x[i])) + Fraction(float(before[i]))
        assert y[i] == nearest(exact)


def nearest(exact):
    """The float32 nearest to a fraction, ties to even, by its two neighbours."""
    guess = np.float32(float(exact))
    near = [
        guess,
        np.nextafter(guess, np.float32(-np.inf)),
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(near, key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view(np.uint32)) & 1))


TRICKY = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.builds(
    lambda k, e: float(np.float32(k * 2.0**e)), st.integers(1, 2**24), st.integers(-150, -60)
)


@given(TRICKY, TRICKY, TRICKY)
@settings(fixed, max_examples=500)
def test_fma_is_rounded_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    with np.errstate(all="ignore"):
        (got,) = arithmetic.fma(*np.array([[a], [b], [c]], np.float32))
    if abs(exact) < Fraction(float(np.finfo(np.float32).max)):
        assert got == nearest(exact)


def test_fma_sees_what_float64_loses():
    a, b = np.float32([1 + 2.0**-23]), np.float32([2.0**-24 - 2.0**-47])  # a b = 2^-24 - 2^-70
    c = np.float32([1 + 2.0**-23])
    equal(arithmetic.fma(a, b, c), c)  # just below the tie of c and its even neighbour above
    equal(arithmetic.fma(-a, b, c), c)  # just above the tie of c and 1, which is even
    equal(arithmetic.fma(a, b, -c), -c)
    in_float64 = (a.astype(float) * b + c.astype(float)).astype(np.float32)
    assert in_float64 != c


REDUCE = """
KERNEL warp_sums(const float *x, float *sums) {
  EACH;
  float v = x[i];
  for (int d = 16; d > 0; d /= 2) v = __fadd_rn(v, __shfl_xor_sync(0xFFFFFFFFu, v, d));
  float of_eight = __shfl_xor_sync(0xFFFFFFFFu, x[i], 5, 8);
  float other = __shfl_xor_sync(0xFFFFFFFFu, x[i], 9, 8);
  sums[3 * i] = v; sums[3 * i + 1] = of_eight; sums[3 * i + 2] = other;
}
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_shuffles(arch):
    x, lane = rng.standard_normal((20, 32)).astype(np.float32), np.arange(32)
    sums = np.empty((20, 32, 3), np.float32)
    run(REDUCE, "warp_sums", 5, 128, x, sums, arch=arch)
    total = x.copy()
    for d in (16, 8, 4, 2, 1):
        total = total + total[:, lane ^ d]
    equal(sums[..., 0], total)
    equal(sums[..., 1], x[:, lane ^ 5])
    beyond = (lane ^ 9) > (lane | 7)  # a lane of a later group is not read
    equal(sums[..., 2], x[:, np.where(beyond, lane, lane ^ 9)])


SHARED = """
KERNEL reverse(const float *x, float *y) {
  __shared__ float held[96];
  EACH;
  held[threadIdx.x] = x[i];
  __syncthreads();
  y[i] = held[LAST - threadIdx.x];
}
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_shared_memory_is_a_blocks_own(arch):
    x = rng.standard_normal(96 * 200).astype(np.float32)
    y = np.empty_like(x)
    run(SHARED.replace("LAST", "95"), "reverse", 200, 96, x, y, arch=arch)
    equal(y.reshape(200, 96), x.reshape(200, 96)[:, ::-1])


DIVERGE = """
KERNEL collatz(const int *x, int *steps, int n) {
  EACH;
  if (i >= n) return;
  int count = 0;
  for (long long v = x[i]; v != 1; ++count) {
    if (v % 2) v = 3 * v + 1; else v /= 2;
    if (count > 150) break;
  }
  steps[i] = count;
}
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_lanes_part_and_meet(arch):
    x = np.arange(1, 1001, dtype=np.int32)
    steps = np.empty_like(x)
    run(DIVERGE, "collatz", 4, 256, x, steps, np.int32(1000), arch=arch)

    def count(v, n=0):
        while v != 1:
            v = 3 * v + 1 if v % 2 else v // 2
            if n > 150:
                break
            n += 1
        return n

    equal(steps, np.array([count(int(v)) for v in x], np.int32))


CONVERT = """
KERNEL halves(const unsigned short *bits, float *wide, unsigned short *back) {
  EACH;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide[i]) : "h"(bits[i]));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(back[i]) : "f"(wide[i] * 1.0009765625f));
}
KERNEL numbers(const int *x, const double *d, float *from, double *wide, float *narrow) {
  EACH;
  from[i] = (float)x[i];
  wide[i] = __dadd_rn((double)((long long)x[i] * 0x7FFFFFFFFll), (double)from[i]);
  narrow[i] = __double2float_rn(__ddiv_rn(__dadd_rn(d[i], 1.0), 3.0));
}
"""


def test_every_float16_to_float32_and_back():
    bits = np.arange(65536, dtype=np.uint16)
    wide = np.empty(65536, np.float32)
    back = np.empty_like(bits)
    run(CONVERT, "halves", 256, 256, bits, wide, back)
    equal(wide, bits.view(np.float16).astype(np.float32))
    with np.errstate(all="ignore"):
        scaled = (wide * np.float32(1.0009765625)).astype(np.float16)
    equal(back.view(np.float16), scaled)


def test_numbers_are_converted_as_ptx_says():
    x = np.int32([0, 1, -1, 2**24 + 1, 2**24 + 3, 2**31 - 1, -(2**31)])
    d = np.linspace(-5, 9e15, x.size)
    from_, wide, narrow = (np.empty(x.size, t) for t in ("f4", "f8", "f4"))
    run(CONVERT, "numbers", 1, x.size, x, d, from_, wide, narrow)
    equal(from_, x.astype(np.float32))
    products = (x.astype(np.int64) * 0x7FFFFFFFF).astype(float)
    equal(wide, products + from_.astype(float))
    equal(narrow, ((d + 1) / 3).astype(np.float32))


EXTREMES = """
KERNEL extremes(const float *a, const float *b, float *most, float *least, int *order,
                float *other) {
  EACH;
  most[i] = fmaxf(a[i], b[i]);
  least[i] = fminf(a[i], b[i]);
  order[i] = (a[i] < b[i]) | (a[i] <= b[i]) << 1 | (a[i] > b[i]) << 2 | (a[i] >= b[i]) << 3
           | (a[i] == b[i]) << 4 | (a[i] != b[i]) << 5 | !(a[i] < b[i]) << 6 | !(a[i] >= b[i]) << 7;
  other[2 * i] = __fdiv_rn(a[i], b[i]);
  other[2 * i + 1] = __fsqrt_rn(fabsf(a[i]));
}
"""


@pytest.mark.parametrize("arch", ARCHS)
def test_nan_and_zeros_as_ptx_orders_them(arch):
    values = np.float32([np.nan, 0.0, -0.0, 1, -1, np.inf, -np.inf, 1e-45, 3.4e38])
    a, b = (np.ascontiguousarray(v).reshape(-1) for v in np.meshgrid(values, values))
    most, least = np.empty_like(a), np.empty_like(a)
    order, other = np.empty(a.size, np.int32), np.empty((a.size, 2), np.float32)
    run(EXTREMES, "extremes", 1, a.size, a, b, most, least, order, other, arch=arch)

    def key(v):
        return (v, not np.signbit(v))  # +0 above -0

    def choose(pick, x, y):
        return y if np.isnan(x) else x if np.isnan(y) else pick(x, y, key=key)

    equal(most, np.float32([choose(max, x, y) for x, y in zip(a, b, strict=True)]))
    equal(least, np.float32([choose(min, x, y) for x, y in zip(a, b, strict=True)]))
    flags = (a < b, a <= b, a > b, a >= b, a == b, a != b, ~(a < b), ~(a >= b))
    equal(order, sum(f.astype(np.int32) << i for i, f in enumerate(flags)))
    with np.errstate(all="ignore"):
        equal(other, np.stack([a / b, np.sqrt(np.abs(a))], 1))


INTEGERS = """
KERNEL integers(const int *a, const int *b, int *r, long long *w, int n) {
  EACH;
  if (i >= n) return;
  int x = a[i], y = b[i];
  unsigned u = x, v = y;
  int *o = r + 16 * i;
  o[0] = y ? x / y : 7;
  o[1] = ~y;
  o[2] = v ? u / v : 7;
  o[3] = x >> (y & 31);
  o[4] = u >> (y & 31);
  o[5] = x << (y & 31);
  o[6] = x - y;
  o[7] = x * y;
  o[8] = -x;
  o[9] = u < v ? u : v;
  o[10] = __byte_perm(x, y, 0x6175);
  o[11] = __funnelshift_l(x, y, x);
  o[12] = (x & y) ^ (~x | 12345);
  o[13] = (u >> 3) & 0x1F;
  o[14] = (u & ~0xFF0u) | ((v & 0xFF) << 4);
  o[15] = (short)(x * y) + (unsigned char)y;
  w[4 * i] = (long long)x * y;
  w[4 * i + 1] = (unsigned long long)u * v + 3;
  w[4 * i + 2] = (unsigned long long)x * 0x9E3779B97F4A7C15ull ^ (unsigned long long)y << 40;
  w[4 * i + 3] = min((long long)x, 5ll) - max(u, v);
}
"""


def wrapped(n, bits=32):
    return (n + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def integers(x, y):
    """What the kernel computes, in Python's own integers."""
    u, v, s = x % 2**32, y % 2**32, y & 31
    whole = abs(x) // abs(y) * (1 if x * y >= 0 else -1) if y else 7
    pair = [*u.to_bytes(4, "little"), *v.to_bytes(4, "little")]
    narrow = [
        whole, ~y, u // v if v else 7, x >> s, u >> s, x << s, x - y, x * y, -x, min(u, v),
        int.from_bytes([pair[5], pair[7], pair[1], pair[6]], "little"),
        ((v << 32 | u) << (u & 31)) >> 32, (x & y) ^ (~x | 12345), u >> 3 & 0x1F,
        u & ~0xFF0 | (v & 0xFF) << 4, wrapped(x * y, 16) + y % 256,
    ]  # fmt: skip
    mixed = (x * 0x9E3779B97F4A7C15 ^ y << 40) % 2**64
    wide = [x * y, u * v + 3, mixed, min(x, 5) - max(u, v)]
    return [wrapped(n) for n in narrow], [wrapped(n, 64) for n in wide]


@pytest.mark.parametrize("arch", ARCHS)
def test_integers_wrap_shift_and_divide(arch):
    edges = np.int32([0, 1, -1, 7, -7, 2**31 - 1, -(2**31) + 1, 0x12345678, -0x12345678])
    a, b = (np.ascontiguousarray(v).reshape(-1) for v in np.meshgrid(edges, edges))
    a, b = (
        np.append(a, rng.integers(-(2**31), 2**31, 100, np.int32)),
        np.append(b, rng.integers(-99, 99, 100, np.int32)),
    )
    r, w = np.empty((a.size, 16), np.int32), np.empty((a.size, 4), np.int64)
    run(INTEGERS, "integers", 2, 128, a, b, r, w, np.int32(a.size), arch=arch)
    expected = [integers(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    assert r.tolist() == [narrow for narrow, _ in expected]
    assert w.tolist() == [wide for _, wide in expected]


NARROW = """
KERNEL narrow(const signed char *a, const short *b, const unsigned char *c, int *wide) {
  EACH;
  wide[3 * i] = a[i];
  wide[3 * i + 1] = b[i] >> 1;
  wide[3 * i + 2] = c[i] << 1;
}
KERNEL compare(const float *a, const float *b, unsigned *flags) {
  EACH;
  unsigned word = 0, bit;
  ALL
  flags[i] = word;
}
"""
ORDERED = ("eq", "ne", "lt", "le", "gt", "ge")
COMPARISONS = (*ORDERED, *(f"{name}u" for name in ORDERED))
ASM = """asm("{\\n.reg .pred %%t<2>;\\n"
      "setp.NAME.f32 %%t1, %1, %2;\\nselp.u32 %0, 1, 0, %%t1;\\n}\\n"
      : "=r"(bit) : "f"(a[i]), "f"(b[i])); word |= bit << PLACE;
"""
FAR = """
KERNEL far(const int *a, int *y) {
  EACH;
  asm("shl.b32 %0, %1, 40;" : "=r"(y[3 * i]) : "r"(a[i]));
  asm("shr.s32 %0, %1, 99;" : "=r"(y[3 * i + 1]) : "r"(a[i]));
  asm("shr.u32 %0, %1, %1;" : "=r"(y[3 * i + 2]) : "r"(a[i]));
}
"""


def test_a_shift_by_more_than_all_bits():
    y = np.empty((3, 3), np.int32)
    run(FAR, "far", 1, 3, np.int32([-5, 7, 33]), y)
    assert y.tolist() == [[0, -1, 0], [0, 0, 0], [0, 0, 0]]


def test_narrow_numbers_keep_their_sign():
    a = np.array([-128, -1, 127], np.int8)
    b, c = np.array([-32768, -3, 5], np.int16), np.array([255, 128, 1], np.uint8)
    wide = np.empty((3, 3), np.int32)
    run(NARROW.replace("ALL", "bit = 0;"), "narrow", 1, 3, a, b, c, wide)
    assert wide.tolist() == [[-128, -16384, 510], [-1, -2, 256], [127, 2, 2]]


def test_every_comparison_of_floats():
    values = np.float32([np.nan, 0.0, -0.0, 1, np.inf])
    a, b = (np.ascontiguousarray(v).reshape(-1) for v in np.meshgrid(values, values))
    flags = np.empty(a.size, np.uint32)
    each = [ASM.replace("NAME", n).replace("PLACE", str(k)) for k, n in enumerate(COMPARISONS)]
    asm = "".join(each)
    run(NARROW.replace("ALL", asm), "compare", 1, a.size, a, b, flags)
    nan = np.isnan(a) | np.isnan(b)
    plain = (a == b, a != b, a < b, a <= b, a > b, a >= b)
    ordered = [p & ~nan for p in plain]
    expected = [*ordered, *(o | nan for o in ordered)]
    equal(flags, sum(e.astype(np.uint32) << k for k, e in enumerate(expected)).astype(np.uint32))


TABLE = """
KERNEL gather(const unsigned long long *table, int count, float *y, int n) {
  EACH;
  if (i >= n) return;
  float sum = 0.f;
  for (int k = 0; k < count; ++k) if (table[k]) sum = __fadd_rn(sum, ((const float *)table[k])[i]);
  y[i] = sum;
}
"""


def test_addresses_of_many_arrays():
    whole = rng.standard_normal(40).astype(np.float32)
    y = np.empty(10, np.float32)
    parts = Addresses((whole[3:13], None, whole[:10], whole[3:13]))
    run(TABLE, "gather", 1, 32, parts, np.int32(4), y, np.int32(10))
    equal(y, whole[3:13] + whole[:10] + whole[3:13])


def test_what_nobody_wrote_is_poison():
    source = "KERNEL half(float *y) { __shared__ float s[8]; y[threadIdx.x] = s[threadIdx.x]; }"
    y = np.zeros(8, np.float32)
    run(source, "half", 1, 8, y)
    assert np.isnan(y).all()
    assert np.isnan(Ptx(HEAD + source).empty((3,), "bfloat16").astype(np.float32)).all()


LINES = """
.visible .entry f()
{
  .loc 1 7 3
  ret;
  .loc 2 449 9, function_name $L__info_string0, inlined_at 1 8 1
  ret;
  .loc 3 12 9, function_name $L__info_string0, inlined_at 1 9 1
  ret;
}
  .file 1 "/somewhere/adam.cu"
  .file 2 "/usr/local/cuda/include/sm_30_intrinsics.hpp"
  .file 3 "common.cuh"
"""


def test_the_line_of_the_text_is_that_of_our_own_files():
    places = [i.place for i in parse(LINES).kernels["f"].instructions]
    assert places == ["adam.cu:7", "adam.cu:8", "common.cuh:12 in adam.cu:9"]


# ---- planted faults ------------------------------------------------------------------------------

COPY = """
KERNEL copy(const float *x, float *y, int n) {
  EACH;
  if (i < n) y[i] = x[i];
}
struct alignas(16) Words { unsigned word[4]; };
KERNEL copy4(const float *x, float *y) {
  EACH;
  ((Words *)y)[i] = ((const Words *)x)[i];
}
"""


def fault(match, source, kernel, grid, block, *arguments):
    with pytest.raises(KernelFault, match=match) as found:
        run('#line 1 "small.cu"\n' + source, kernel, grid, block, *arguments)
    assert "small.cu:" in str(found.value)
    assert f"PTX line {found.value.instruction.line}" in str(found.value)
    return found.value


def test_a_read_past_the_end():
    x, y = np.zeros(99, np.float32), np.zeros(100, np.float32)
    found = fault(
        r"reads 4 bytes .*: 0 bytes past the end of argument 0, which has 396 bytes",
        COPY,
        "copy",
        2,
        64,
        x,
        y,
        np.int32(100),
    )
    assert (found.block, found.thread) == (1, 35)
    assert "ld.global" in found.instruction.text
    assert "small.cu:4" in str(found)


def test_a_write_past_the_end():
    x, y = np.zeros(100, np.float32), np.zeros(98, np.float32)
    found = fault(
        r"writes 4 bytes .*past the end of argument 1", COPY, "copy", 2, 64, x, y, np.int32(100)
    )
    assert (found.block, found.thread) == (1, 34)


def test_a_read_before_the_start():
    source = "KERNEL back(const float *x, float *y) { EACH; y[i] = x[i - 1]; }"
    whole, y = np.arange(65, dtype=np.float32), np.empty(64, np.float32)
    fault("4 bytes before the start of argument 0", source, "back", 1, 64, whole[1:], y)
    source = source.replace("y[i] = x[i - 1]", "if (i) y[i] = x[i - 1]")
    run(source, "back", 1, 64, whole[1:], y)
    equal(y[1:], whole[1:64])


def test_a_neighbour_in_numpy_is_no_neighbour_in_the_heap():
    whole = np.zeros(199, np.float32)
    fault("past the end of argument 0", COPY, "copy", 2, 64, whole[:99], whole[99:], np.int32(100))


def test_a_null_pointer():
    fault(
        "at 0x0 of global memory, where no array lies",
        COPY,
        "copy",
        1,
        4,
        None,
        np.zeros(4, np.float32),
        np.int32(4),
    )


def test_a_write_to_what_is_read_only():
    y = np.zeros(4, np.float32)
    y.flags.writeable = False
    fault(
        "writes argument 1, which is read-only",
        COPY,
        "copy",
        1,
        4,
        np.ones(4, np.float32),
        y,
        np.int32(4),
    )
    assert (y == 0).all()


@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_sixteen_bytes_need_their_alignment(offset):
    room = np.zeros(80, np.float32)
    start = -room.ctypes.data % 16 // 4 + offset
    x, y = rng.standard_normal(64).astype(np.float32), room[start : start + 64]
    if offset % 4:
        fault("not aligned to 16", COPY, "copy4", 1, 16, x, y)
    else:
        run(COPY, "copy4", 1, 16, x, y)
        equal(y, x)


def test_shared_memory_one_too_short():
    x = np.zeros(96, np.float32)
    source = SHARED.replace("held[96]", "held[95]").replace("LAST", "95")
    found = fault(
        "writes 4 bytes .* of shared memory: 0 bytes past the end",
        source,
        "reverse",
        1,
        96,
        x,
        x.copy(),
    )
    assert found.thread == 95


def test_two_shared_arrays_are_no_neighbours():
    source = """KERNEL two(float *y) {
      __shared__ float a[64], b[64];
      a[threadIdx.x] = b[threadIdx.x] = 1.f;
      __syncthreads();
      y[threadIdx.x] = a[threadIdx.x + 1] + b[threadIdx.x];
    }"""
    found = fault(
        "0 bytes past the end of .*a, which has 256", source, "two", 1, 64, np.ones(64, np.float32)
    )
    assert found.thread == 63


def test_a_barrier_in_a_branch():
    source = SHARED.replace("__syncthreads();", "if (threadIdx.x < 64) __syncthreads();")
    x = np.zeros(192, np.float32)
    fault(
        "threads of the block never came",
        source.replace("LAST", "95"),
        "reverse",
        2,
        96,
        x,
        x.copy(),
    )


def test_a_barrier_after_some_have_left():
    source = SHARED.replace("EACH;", "EACH; if (i == 100) return;").replace("LAST", "95")
    x = np.zeros(192, np.float32)
    found = fault("threads of the block never came", source, "reverse", 2, 96, x, x.copy())
    assert found.block == 1


def test_a_barrier_that_whole_blocks_skip_is_none():
    source = SHARED.replace("__syncthreads();", "if (blockIdx.x) __syncthreads();")
    x = np.arange(192, dtype=np.float32)
    y = np.empty_like(x)
    run(source.replace("LAST", "95"), "reverse", 2, 96, x, y)
    equal(y.reshape(2, 96), x.reshape(2, 96)[:, ::-1])


SHUFFLE = """
KERNEL exchange(const float *x, float *y) {
  EACH;
  float v = x[i];
  GUARD v = __shfl_xor_sync(MASK, v, 16);
  y[i] = v;
}
"""


@pytest.mark.parametrize(
    ("guard", "mask", "block", "message"),
    [
        ("if (v != 3.f)", "0xFFFFFFFFu", 64, "lanes that the mask names never came"),
        ("", "0xFFFFFFFFu", 48, "lanes that the mask names never came"),
        ("", "0x0000FFFFu", 64, "the mask does not name the lane itself"),
        (
            "if (threadIdx.x % 32 < 16)",
            "0x0000FFFFu",
            64,
            "the lane that is read, 16, is not in the mask",
        ),
    ],
    ids=["diverged", "short warp", "small mask", "read outside the mask"],
)
def test_a_shuffle_that_lanes_are_missing_from(guard, mask, block, message):
    source = SHUFFLE.replace("GUARD", guard).replace("MASK", mask)
    x = np.arange(2 * block, dtype=np.float32)
    fault(message, source, "exchange", 2, block, x, x.copy())


def test_a_shuffle_of_half_a_warp():
    source = SHUFFLE.replace("GUARD", "if (threadIdx.x % 32 < 16)").replace("MASK", "0x0000FFFFu")
    x = np.arange(64, dtype=np.float32)
    y = np.empty_like(x)
    run(source.replace("v, 16", "v, 8"), "exchange", 1, 64, x, y)
    lane = np.arange(64)
    equal(y, x[np.where(lane % 32 < 16, lane ^ 8, lane)])


ROOT = "KERNEL root(const float *x, float *y) { EACH; y[i] = x[i] / sqrtf(y[i]); }"


LOCAL = """
KERNEL root(int *x) {
  int held[8];
  for (int k = 0; k < 8; ++k) held[(k * 3 + x[9]) & 7] = k * x[0];
  x[1] = held[x[2] & 7];
}
"""


@pytest.mark.parametrize(
    ("source", "options", "opcode"),
    [
        (ROOT, ("-std=c++17", "--use_fast_math"), r"sqrt\.approx\.ftz\.f32"),
        (ROOT, ("-std=c++17", "--fmad=false", "--ftz=true"), r"\.ftz\.f32"),
        (ROOT, ("-std=c++17", "--fmad=false", "--prec-div=false"), r"div\.full\.f32"),
        ("KERNEL root(float *x) { atomicAdd(x, 1.f); }", (), r"(atom|red)\.global"),
        ("KERNEL root(float *x) { x[0] = __fadd_rz(x[0], 1.f); }", (), r"add\.rz\.f32"),
        ('KERNEL root(float *x) { asm("bar.sync 1, 64;"); }', (), r"bar\.sync"),
        ("KERNEL root(int *x) { x[0] = __shfl_down_sync(~0u, x[0], 1); }", (), r"shfl\.sync\.down"),
        ("KERNEL root(int *x) { x[0] = __ballot_sync(~0u, x[0]); }", (), r"vote\.sync\.ballot"),
        ("__device__ int T[2] = {1, 2}; KERNEL root(int *x) { x[0] = T[x[0]]; }", (), r"mov\.u64"),
        (LOCAL, (), r"__local_depot0|\.local\.|mov\.(b|u)64"),
    ],
)
def test_what_is_not_listed_is_refused_before_anything_runs(source, options, opcode):
    machine = Ptx(HEAD + source, 90, options)
    with pytest.raises(UnknownInstruction, match=opcode):
        machine.program("root")
    assert not issubclass(UnknownInstruction, NotImplementedError)  # no lawful refusal


def test_a_launch_that_does_not_fit_the_kernel():
    machine = Ptx(HEAD + COPY)
    x = np.zeros(4, np.float32)
    for message, call in (
        (r"kernel must be one of copy, copy4; got 'cpy'", ("cpy", 1, 4, x, x, np.int32(4))),
        ("copy takes 3 arguments, got 2", ("copy", 1, 4, x, x)),
        ("copy_param_2 takes 4 bytes, got .* of 8", ("copy", 1, 4, x, x, np.int64(4))),
        ("block must be 1 to 1024 threads, got 2048", ("copy", 1, 2048, x, x, np.int32(4))),
        ("grid must be 1 to 2147483647 blocks, got 0", ("copy", 0, 32, x, x, np.int32(4))),
    ):
        with pytest.raises(ValueError, match=message):
            machine.launch(*call)
    with pytest.raises(TypeError, match="argument 0 must be contiguous, got strides"):
        machine.launch("copy", 1, 4, np.zeros((4, 2), np.float32)[:, 0], x, np.int32(4))
    with pytest.raises(TypeError, match="an argument must be an array, None or a NumPy scalar"):
        machine.launch("copy", 1, 4, x, x, 4)


def test_a_text_that_does_not_compile():
    with pytest.raises(compiling.CompileError, match=r'small.cu:2: identifier "y" is undefined'):
        Ptx('#line 1 "small.cu"\n\nextern "C" __global__ void f(float *x) { *x = y; }').program("f")


# ---- the kernels ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernels():
    return operations.implementation(Ptx())


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=70)
VALUES = st.floats(-4, 4, width=16)


@given(x=hnp.arrays(np.float32, SHAPES, elements=VALUES), data=st.data())
@fixed
def test_codes_and_values_equal_the_references(kernels, x, data):
    x = x.astype(data.draw(st.sampled_from([np.float32, np.float16, bfloat16])))
    blocksize = data.draw(st.sampled_from([32, 64, 256]))
    kind = data.draw(st.sampled_from(["nf4", "fp4"]))
    packed, absmax = kernels.quantize_4bit(x, blocksize=blocksize, quant_type=kind)
    expected, scales = q.quantize_4bit(x, blocksize=blocksize, quant_type=kind)
    np.testing.assert_array_equal(packed, expected)
    equal(absmax, scales)
    options = {"shape": x.shape, "blocksize": blocksize, "quant_type": kind, "dtype": x.dtype}
    got = kernels.dequantize_4bit(packed, absmax, **options)
    np.testing.assert_array_equal(got, q.dequantize_4bit(expected, scales, **options))
