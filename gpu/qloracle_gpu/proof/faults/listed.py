"""The faults: what is wrong, where, and which runners must see it.

A value that is wrong is seen by whatever runs the kernel.  The others differ:

    host     barriers, shuffles, alignment, memory close behind a result, the order of an index
    address  every byte beyond an array, be it global or shared
    thread   what only the order of threads hides
    ptx      what NVIDIA's compiler does under its options, and every byte beyond an array
    gate     what costs speed and changes no value: registers, spills, local memory
"""

from __future__ import annotations

from qloracle_gpu.proof.faults.cases import CASES
from qloracle_gpu.proof.faults.planting import Edit, Fault

EVERY = ("host", "address", "thread", "ptx")  # a wrong value, or an error, wherever the kernel runs
BYTES = ("address", "ptx")  # a byte beyond an array
ORDER = ("host", "thread")  # lanes of ptx run in step, which hides a missing barrier

STANDARD = "-std=c++17"

QUANTIZE = (
    Fault(
        "barrier dropped after the thresholds",
        "thresholds are read before other threads have written them",
        "quantize",
        ORDER,
        (
            Edit(
                "__uint_as_float(0x7F800000u);\n  }\n  __syncthreads();\n",
                "__uint_as_float(0x7F800000u);\n  }\n",
            ),
        ),
    ),
    Fault(
        "barrier dropped after the bins",
        "bins are read before other threads have written them",
        "quantize",
        ORDER,
        (
            Edit(
                "word : word | SEARCH};\n    }\n  }\n  __syncthreads();\n",
                "word : word | SEARCH};\n    }\n  }\n",
            ),
        ),
    ),
    Fault(
        "early return before a shuffle",
        "lanes beyond the end leave, and the others wait for them in the maximum",
        "quantize",
        EVERY,
        (
            Edit(
                "const Index own = warp * span + lane * OCTET;\n",
                "const Index own = warp * span + lane * OCTET;\n    if (own >= n) return;\n",
            ),
        ),
    ),
    Fault(
        "small shuffle mask",
        "the mask names 16 lanes where 32 arrive",
        "quantize",
        EVERY,
        (Edit("ALL_LANES = 0xFFFFFFFFu", "ALL_LANES = 0x0000FFFFu"),),
    ),
    Fault(
        "maximum over half a block",
        "the last of the shuffles is left out",
        "quantize",
        EVERY,
        (Edit("distance < WARP && distance < lanes;", "distance < WARP && 2 * distance < lanes;"),),
    ),
    Fault(
        "maximum over the warp",
        "all blocks of a warp share one absmax",
        "quantize",
        EVERY,
        (Edit("group_max(largest, lanes)", "warp_max(largest)"),),
    ),
    Fault(
        "second pass not looked at",
        "of a block longer than 256 only the first 256 count for absmax",
        "quantize",
        EVERY,
        (Edit("load_octet(x, offset, own + pass * WARP_SPAN,", "load_octet(x, offset, own,"),),
    ),
    Fault(
        "read past the end of x",
        "the tail takes one element more",
        "quantize",
        BYTES,
        (
            Edit(
                "values[i] = first + i < n ? to_float(x[first + i]) : 0.0f;",
                "values[i] = first + i <= n ? to_float(x[first + i]) : 0.0f;",
            ),
        ),
    ),
    Fault(
        "absmax written past its end",
        "lanes beyond the end store the absmax of blocks that are not there",
        "quantize",
        ("host", *BYTES),
        (Edit("if (first_of_block && own < n)", "if (first_of_block)"),),
    ),
    Fault(
        "unaligned vector load",
        "16 bytes at once from an array that begins anywhere",
        "quantize",
        ("host", *BYTES),
        (Edit("if (whole && is_aligned(x, 16))", "if (whole)"),),
    ),
    Fault(
        "tie takes the upper code",
        "half a step below a threshold for half a step above it: q >= t",
        "quantize",
        EVERY,
        (Edit("__fmaf_rn(of.shrunk, step,", "__fmaf_rn(-of.shrunk, step,"),),
    ),
    Fault(
        "tie takes the upper code in the search",
        ">= for > beside a threshold, where the scale is beyond the limits",
        "quantize",
        EVERY,
        (Edit("below += q > thresholds", "below += q >= thresholds"),),
    ),
    Fault(
        "quotient not rounded",
        "x is compared with absmax t: a quotient that rounds down to t is above it",
        "quantize",
        EVERY,
        (
            Edit(
                "__fmaf_rn(of.shrunk, step, __fmaf_rn(of.absmax, bin.t, -x))",
                "__fmaf_rn(of.absmax, bin.t, -x)",
            ),
        ),
    ),
    Fault(
        "reciprocal",
        "x times 1 / absmax, two roundings, in place of one division",
        "quantize",
        EVERY,
        (Edit("__fdiv_rn(values[i], divisor)", "__fmul_rn(values[i], __fdiv_rn(1.0f, divisor))"),),
    ),
    Fault(
        "zeros divided by zero",
        "a block of zeros gets the code of NaN",
        "quantize",
        EVERY,
        (Edit("absmax == 0.0f ? 1.0f : absmax;", "absmax;"),),
    ),
    Fault(
        "nibbles swapped",
        "element 2k goes to the low nibble",
        "quantize",
        EVERY,
        (
            Edit("four_codes<4, 2, SIZES>(bins, values, of, marks) << 4;", "0;"),
            Edit(
                "octet |= four_codes<4, 2, SIZES>(bins, values + 1, of, marks);",
                "octet |= four_codes<4, 2, SIZES>(bins, values + 1, of, marks) << 4;\n"
                "    octet |= four_codes<4, 2, SIZES>(bins, values, of, marks);",
            ),
        ),
    ),
    Fault(
        "spare nibble",
        "behind an odd last element stands 0, and not the code of +0",
        "quantize",
        EVERY,
        (
            Edit(
                "to[j] = (Byte)(octet >> 8 * j);",
                "to[j] = (Byte)(octet >> 8 * j) & (first + 2 * j + 1 < n ? 0xFF : 0xF0);",
            ),
        ),
    ),
    Fault(
        "stale packing byte",
        "the byte of an odd last element is not written",
        "quantize",
        EVERY,
        (
            Edit(
                "if (first + j * OCTET / BITS < n)",
                "if (first + (j + 1) * OCTET / BITS <= n)",
            ),
        ),
    ),
    Fault(
        "int32 index in quantize",
        "an element beyond 2^31 has a negative number",
        "far",
        ("host",),
        (
            Edit(
                "const Index own = warp * span + lane * OCTET;",
                "const int own = (int)(warp * span + lane * OCTET);",
            ),
        ),
    ),
)

EIGHT_BITS = (
    Fault(
        "no margin at the edge of a bin",
        "a threshold belongs to one bin, and x y may fall into the other",
        "8 bits",
        EVERY,
        (Edit("LAST ? 1 + 0x1p-21f : 1 - 0x1p-21f", "LAST ? 1.0f : 1.0f"),),
    ),
    Fault(
        "mark not looked at",
        "a bin to which two thresholds belong tells of the first",
        "8 bits",
        EVERY,
        (Edit("return (marks & SEARCH) == 0;", "return true;"),),
    ),
    Fault(
        "mark in the last four only",
        "of an octet only the second half sends it to the search",
        "8 bits",
        EVERY,
        (Edit("    marks |= bin.word;", "    marks = bin.word;"),),
    ),
    Fault(
        "small thresholds not marked",
        "below its limit a product with absmax loses bits",
        "8 bits",
        EVERY,
        (Edit("LEAST_T = 0x1p-26f", "LEAST_T = 0.0f"),),
    ),
    Fault(
        "fewer bins than places",
        "room for half of the bins",
        "8 bits",
        BYTES,
        (Edit("SHARED(Bin, bins, BINS<8>);  ", "SHARED(Bin, bins, BINS<8> / 2);  "),),
    ),
    Fault(
        "NaN through the bins",
        "a NaN is looked up like a number",
        "8 bits",
        EVERY,
        (Edit("!strange && absmax >=", "absmax >="),),
    ),
)

DEQUANTIZE = (
    Fault(
        "barrier dropped after the levels",
        "levels are read before other threads have copied them",
        "dequantize",
        ORDER,
        (
            Edit(
                "table[i] = i < count ? levels[i] : __uint_as_float(0x7FC00000u);\n  }\n",
                "table[i] = i < count ? levels[i] : __uint_as_float(0x7FC00000u);\n  }\n"
                "#define __syncthreads()\n",
            ),
        ),
    ),
    Fault(
        "levels copied by all threads",
        "every thread writes the whole table: the right levels, and a race",
        "dequantize",
        ("thread",),
        (
            Edit(
                "for (int i = threadIdx.x; i < 1 << BITS; i += blockDim.x) {\n    table[i]",
                "for (int i = 0; i < 1 << BITS; ++i) {\n    table[i]",
            ),
        ),
    ),
    Fault(
        "shared array one short",
        "room for 15 of 16 levels",
        "dequantize",
        BYTES,
        (Edit("SHARED(float, table, 16);", "SHARED(float, table, 15);", 2),),
    ),
    Fault(
        "read past the end of the codes",
        "the tail takes one byte more",
        "dequantize",
        BYTES,
        (
            Edit(
                "j < BITS && first + j * OCTET / BITS < n;",
                "j < BITS && first + j * OCTET / BITS <= n;",
            ),
        ),
    ),
    Fault(
        "read past the end of the levels",
        "16 levels are copied where int4 has 15",
        "dequantize",
        BYTES,
        (Edit("i < count ? levels[i] : __uint_as_float(0x7FC00000u)", "levels[i]"),),
    ),
    Fault(
        "write past the end",
        "the tail stores one element more",
        "dequantize",
        ("host", *BYTES),
        (
            Edit(
                "if (first + i < n) {\n      values[first + i]",
                "if (first + i <= n) {\n      values[first + i]",
            ),
        ),
    ),
    Fault(
        "nibbles swapped in decode",
        "element 2k comes from the low nibble",
        "dequantize",
        EVERY,
        (
            Edit(
                "table[codes >> place_of<BITS>(i) &",
                "table[codes >> (place_of<BITS>(i) ^ 4) &",
            ),
        ),
    ),
    Fault(
        "absmax of the neighbour",
        "every second block takes the scale of the one before it",
        "dequantize",
        EVERY,
        (Edit("{ return absmax[block]; }", "{ return absmax[block & ~1]; }"),),
    ),
    Fault(
        "bfloat16 truncated",
        "the low bits are cut off, and not rounded to nearest even",
        "dequantize, 16 bits",
        EVERY,
        (Edit("bits + 0x7FFFu + (bits >> 16 & 1u)", "bits"),),
    ),
    Fault(
        "float16 through bfloat16",
        "a value is rounded to bfloat16 on its way to float16",
        "dequantize, 16 bits",
        EVERY,
        (
            Edit(
                '"f"(value));\n  return narrow;',
                '"f"(to_float(from_float<BFloat16>(value))));\n  return narrow;',
            ),
            Edit(
                "shim_float_to_half(value)",
                "shim_float_to_half(to_float(from_float<BFloat16>(value)))",
            ),
        ),
    ),
    Fault(
        "int32 index in dequantize",
        "an element beyond 2^31 has a negative number",
        "far",
        ("host",),
        (
            Edit(
                "const Index first = begin + k * width;",
                "const int first = (int)(begin + k * width);",
                2,
            ),
        ),
    ),
    Fault(
        "array indexed at run time",
        "a loop that is not unrolled moves an array from registers to local memory",
        "dequantize",
        ("gate",),
        (
            Edit(
                "#pragma unroll\n      for (int k = 0; k < UNROLL; ++k) {\n        float octet",
                "#pragma unroll 1\n      for (int k = 0; k < UNROLL; ++k) {\n        float octet",
            ),
        ),
    ),
    Fault(
        "nested decode fused",
        "one rounding where S8 has two",
        "dequantize, nested",
        EVERY,
        (
            Edit(
                "__fadd_rn(__fmul_rn(level, nested_absmax), offset)",
                "__fmaf_rn(level, nested_absmax, offset)",
            ),
        ),
    ),
    Fault(
        "nested offset missing",
        "the mean of the scales is not added back",
        "dequantize, nested",
        EVERY,
        (
            Edit(
                "nested_absmax[block >> log_group], offset[0])",
                "nested_absmax[block >> log_group], 0.0f)",
            ),
        ),
    ),
    Fault(
        "group of the neighbour",
        "all scales take the first nested_absmax",
        "dequantize, nested",
        EVERY,
        (Edit("nested_absmax[block >> log_group]", "nested_absmax[0]"),),
    ),
)

SCALES = (
    Fault(
        "barrier dropped in the sum",
        "halves are added before they are whole",
        "scales",
        ORDER,
        (
            Edit(
                "    __syncthreads();\n    if ((int)threadIdx.x < half)",
                "    if ((int)threadIdx.x < half)",
            ),
        ),
    ),
    Fault(
        "two barriers merged",
        "one barrier before the loop in place of one in each round",
        "scales",
        ORDER,
        (
            Edit(
                "  for (int half = SUMMING / 2; half > 0; half /= 2) {\n    __syncthreads();\n",
                "  __syncthreads();\n  for (int half = SUMMING / 2; half > 0; half /= 2) {\n",
            ),
        ),
    ),
    Fault(
        "barrier in a branch",
        "only the threads that add come to the barrier",
        "scales",
        EVERY,
        (
            Edit(
                "    __syncthreads();\n    if ((int)threadIdx.x < half) {\n",
                "    if ((int)threadIdx.x < half) {\n      __syncthreads();\n",
            ),
        ),
    ),
    Fault(
        "two blocks write one output",
        "every block stores its sum in the first place",
        "scales",
        EVERY,
        (Edit("sums[blockIdx.x] = sum;", "sums[0] = sum;"),),
    ),
    Fault(
        "plain add where an atomic is needed",
        "blocks add to one sum, and only their order makes it right",
        "scales",
        ("thread", "ptx"),
        (
            Edit(
                "sums[blockIdx.x] = sum;",
                "sums[blockIdx.x] = 0.0;\n    sums[0] = blockIdx.x == 0 ? sum : sums[0] + sum;",
            ),
        ),
    ),
    Fault(
        "sums one short",
        "room for 255 of 256 sums in shared memory",
        "scales",
        BYTES,
        (Edit("SHARED(double, parts, SUMMING);", "SHARED(double, parts, SUMMING - 1);", 2),),
    ),
)

PRODUCT = (
    Fault(
        "barrier dropped before the sums of warps",
        "sums of other warps are read before they are there",
        "product",
        ORDER,
        (
            Edit(
                "  __syncthreads();\n  for (int i = threadIdx.x; i < width * ROWS;",
                "  for (int i = threadIdx.x; i < width * ROWS;",
            ),
        ),
    ),
    Fault(
        "block index per row",
        "a row of W is taken to begin with a block",
        "product",
        EVERY,
        (Edit("ahead = (int)(first - (block << weight.log_blocksize));", "ahead = 0;"),),
    ),
    Fault(
        "order of sums depends on M",
        "with several rows, an octet is added from its end",
        "product",
        EVERY,
        (
            Edit(
                "__fmaf_rn(octet[i], w[c][i],",
                "__fmaf_rn(octet[ROWS > 1 ? 7 - i : i], w[c][ROWS > 1 ? 7 - i : i],",
            ),
        ),
    ),
    Fault(
        "last octet of K dropped",
        "the loop ends one octet early",
        "product",
        EVERY,
        (Edit("at < size.k; at += step)", "at + OCTET < size.k; at += step)"),),
    ),
    Fault(
        "part of K counted twice",
        "the first of the warps that share K is added twice",
        "product",
        EVERY,
        (
            Edit(
                "for (int split = 1; split < size.splits;",
                "for (int split = 0; split < size.splits;",
            ),
        ),
    ),
    Fault(
        "row of x that is not there",
        "rows up to the tile's height are read, be they there or not",
        "product",
        BYTES,
        (Edit("(row + r < size.m ? row + r : size.m - 1)", "(row + r)"),),
    ),
    Fault(
        "too many columns a warp",
        "sums of 16 columns and 4 rows do not fit into the registers that a block has",
        "product",
        ("gate",),
        (Edit("constexpr int COLUMNS = 4;", "constexpr int COLUMNS = 32;"),),
    ),
)

ADAM = (
    Fault(
        "first tensor's chunks",
        "chunks of the second tensor are counted from the first chunk of all",
        "adam",
        EVERY,
        (Edit("first_chunks[tensor]) * length", "first_chunks[0]) * length"),),
    ),
    Fault(
        "bias correction of v for m",
        "m is divided by 1 - b2^t",
        "adam",
        EVERY,
        (Edit("__fdiv_rn(m, k.c1)", "__fdiv_rn(m, k.c2)"),),
    ),
    Fault(
        "eps inside the root",
        "sqrt(v + eps) for sqrt(v) + eps",
        "adam",
        EVERY,
        (
            Edit(
                "__fsqrt_rn(__fdiv_rn(v, k.c2))", "__fsqrt_rn(__fadd_rn(__fdiv_rn(v, k.c2), k.eps))"
            ),
            Edit("__fadd_rn(root, k.eps)", "root"),
        ),
    ),
    Fault(
        "old m",
        "the parameter moves by the moments before the step",
        "adam",
        EVERY,
        (
            Edit(
                "update_moments(g[i], k, m[i], v[i]);\n    p[i] = moved(p[i], m[i], v[i], k);",
                "p[i] = moved(p[i], m[i], v[i], k);\n    update_moments(g[i], k, m[i], v[i]);",
            ),
        ),
    ),
    Fault(
        "contraction left on",
        "b1 m + (1 - b1) g by plain operators, which the compiler may then fuse",
        "adam",
        ("ptx",),
        (
            Edit(
                "m = __fadd_rn(__fmul_rn(k.b1, m), __fmul_rn(k.one_minus_b1, g));",
                "m = k.b1 * m + k.one_minus_b1 * g;",
            ),
        ),
        (STANDARD, "--fmad=true"),
    ),
    Fault(
        "fast math",
        "approximate divisions and roots, subnormals flushed",
        "adam",
        ("ptx",),
        (),
        (STANDARD, "--use_fast_math"),
    ),
)

ADAM_8_BITS = (
    Fault(
        "barrier dropped after the maps",
        "levels are read before other threads have copied them",
        "adam, 8 bits",
        ORDER,
        (
            Edit(
                "template <typename T>\nstruct Octet {",
                "#define __syncthreads()\ntemplate <typename T>\nstruct Octet {",
            ),
        ),
    ),
    Fault(
        "scales overwritten while they are read",
        "in place, a lane stores the new absmax before the warp has met",
        "adam, 8 bits",
        ("thread",),
        (Edit("    __syncwarp();  // no lane", "    // no lane"),),
    ),
    Fault(
        "moments coded before use",
        "the parameter moves by what the new codes decode to",
        "adam, 8 bits",
        EVERY,
        (
            Edit("        move<true>(at, OCTET, m, v);\n", ""),
            Edit("        move<false>(at, count(at), m, v);\n", ""),
            Edit(
                "whole, at, count(at), of.new_v_codes);\n",
                "whole, at, count(at), of.new_v_codes);\n"
                "      decode_first<false>(of.new_m_codes, m_map, m_absmax, at, count(at), m);\n"
                "      decode_first<false>(of.new_v_codes, v_map, v_absmax, at, count(at), v);\n"
                "      move<false>(at, count(at), m, v);\n",
            ),
        ),
    ),
)

FAULTS = (*QUANTIZE, *EIGHT_BITS, *DEQUANTIZE, *SCALES, *PRODUCT, *ADAM, *ADAM_8_BITS)
UNCHANGED = tuple(Fault(f"unchanged: {case}", "as it is", case, ()) for case in CASES)


def named(name: str) -> Fault:
    """Return a fault, or the unchanged text on a case, by its name; ValueError for another."""
    found = {fault.name: fault for fault in (*FAULTS, *UNCHANGED)}
    if name not in found:
        raise ValueError(f"name must be one of {', '.join(found)}; got {name!r}")
    return found[name]
