// Quantize to 4 bits or to 8: the absmax of each block, and a code for each element (S3 to S6).
//
//     absmax = max |x| of the block                      exact, in any order              (S4)
//     q      = x / absmax                                one correctly rounded division
//     code   = number of thresholds t with q > t         a tie takes the lower code       (S5)
//
// Launch: 256 threads; any grid, since warps stride over the tensor. A lane owns an octet, 8
// neighbouring elements, and blocksize / 8 lanes own a block: a warp takes several small blocks at
// once, or one block of more than 256 elements in several passes. Block sizes are the powers of two
// from 32 to 4096, passed as their logarithm.
// Bytes for each element: sizeof(T) + BITS / 8 + 4 / blocksize, which is 2.5625 for NF4 of bfloat16
// in blocks of 64. (A block of more than 256 is read twice, the second time from a cache.)
//
// All of x is finite. Otherwise: a NaN is left out of absmax, and its code is 0.

constexpr int WARP_SPAN = WARP * OCTET;  // elements of a warp in one pass

// The midpoint of two neighbouring levels, summed and halved in float64, then rounded once (S2).
__device__ inline float midpoint(float low, float high) {
  return __double2float_rn(__dmul_rn(__dadd_rn((double)low, (double)high), 0.5));
}

// Fill `thresholds` [1 << BITS] for a codebook in order; what lies behind the last is beyond all q.
template <int BITS>
__device__ inline void fill_thresholds(const float *levels, int count, float *thresholds) {
  for (int i = threadIdx.x; i < 1 << BITS; i += blockDim.x) {
    const bool between = i + 1 < count;
    thresholds[i] = between ? midpoint(levels[i], levels[i + 1]) : __uint_as_float(0x7F800000u);
  }
  __syncthreads();
}

// Count the thresholds strictly below q: a binary search without a branch.
template <int BITS>
__device__ inline unsigned count_below(const float *thresholds, float q) {
  unsigned below = 0;
#pragma unroll
  for (unsigned step = 1u << (BITS - 1); step > 0; step /= 2) {
    below += q > thresholds[below + step - 1] ? step : 0;
  }
  return below;
}

// FP4's codes do not follow the size: nibble i of `names` is the 3-bit code of magnitude i, and the
// sign is bit 3 of the code. A codebook in order has names = 0.
template <int BITS>
__device__ inline unsigned code_of(const float *thresholds, int names, float q) {
  if (names == 0) {
    return count_below<BITS>(thresholds, q);
  }
  const unsigned magnitude = count_below<3>(thresholds, fabsf(q));
  return ((unsigned)names >> 4 * magnitude & 7u) | (q < 0.0f ? 8u : 0u);
}

// Divide an octet by its block's absmax, each quotient correctly rounded.
//
// A division takes about ten instructions; with y = RN(1 / absmax), made once for all, three do:
//     q0 = RN(x y),  r = x - absmax q0 (exact: fma),  q = RN(q0 + r y)
// q is RN(x / absmax). Scale x and absmax to [1, 2), absmax = A 2^-23. |y - 1/absmax| <= 2^-25, and
// q0 is less than 1.5 ulp off: 1/2 from its own rounding, and x 2^-25 < 1 ulp from y's. Before
// its rounding q is off by d = |x/absmax - q0| absmax 2^-25. To round to the wrong side, x / absmax
// must lie within d of the middle of two floats, hence about 1/2 ulp from q0 (1.5 is out of reach),
// and d is about absmax 2^-26. But the quotient of two 24-bit numbers stays 1 / (2 A) = 2^-24 /
// absmax ulp away from every middle, which is more, since absmax < 2. Nothing may underflow on the
// way: 2^-100 <= |x| <= absmax <= 2^20 is enough. Elsewhere (a zero among the eight), divide.
__device__ inline void divide(float values[OCTET], float absmax) {
  float smallest = fabsf(values[0]);
#pragma unroll
  for (int i = 1; i < OCTET; ++i) {
    smallest = fminf(smallest, fabsf(values[i]));
  }
  if (smallest >= 0x1p-100f && absmax <= 0x1p20f) {
    const float y = __fdiv_rn(1.0f, absmax);
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      const float q0 = __fmul_rn(values[i], y);
      values[i] = __fmaf_rn(__fmaf_rn(-absmax, q0, values[i]), y, q0);
    }
  } else {
    const float divisor = absmax == 0.0f ? 1.0f : absmax;  // a block of zeros keeps its zeros
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      values[i] = __fdiv_rn(values[i], divisor);
    }
  }
}

// Widen the octet that begins at element `first`; +0 stands behind the end of x. With an offset,
// what is quantized is RN(x - offset) (S8).
template <typename T>
__device__ inline void load_octet(
    const T *x, const float *offset, Index first, Index n, float values[OCTET]) {
  const bool whole = first + OCTET <= n;
  if (whole && is_aligned(x, 16)) {
    load8(x + first, values);
  } else {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      values[i] = first + i < n ? to_float(x[first + i]) : 0.0f;
    }
  }
  if (offset != nullptr) {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      values[i] = first + i < n ? __fsub_rn(values[i], offset[0]) : 0.0f;
    }
  }
}

// Store the codes of an octet. What is behind the end is not written, but for the spare nibble:
// load_octet made it the code of +0.
template <int BITS>
__device__ inline void store_codes(Byte *codes, Index first, Index n, Codes<BITS> octet) {
  Byte *to = codes + (first >> 3) * BITS;
  if (first + OCTET <= n && is_aligned(codes, BITS)) {
    *(Codes<BITS> *)to = octet;
  } else {
#pragma unroll
    for (int j = 0; j < BITS; ++j) {
      if (first + j * OCTET / BITS < n) {
        to[j] = (Byte)(octet >> 8 * j);
      }
    }
  }
}

// ---- 4 bits: a guess that knows when it may be wrong --------------------------------------------
//
// q lies in [-1, 1] (FP4: |q| in [0, 1]) and falls into a bin of width 1/16. None of the four
// tables has two thresholds in a bin, and so the bin tells the code but for one comparison. The
// quotient need not be rounded, nor even formed: with y = RN(1 / absmax),
//
//     bin        = bits 2 to 7 of RN(x y + 1.5 2^17), whose bit 0 is worth 1/64
//     difference = RN(t - x y), with t the threshold in the bin, or the next one above
//     code       = number of thresholds below the bin, and 1 more if the difference is negative
//
// One table holds both: the last 4 bits of t are that number. The difference has the sign of t - q
// where its size is 2^-19 or more: y's rounding moves x y by 2^-24 at most, q's own moves q by
// 2^-25, and the 4 bits move t by less than 2^-20, since |t| < 1. Of normal weights one in 30,000
// is nearer to a threshold, and a tie always is; the octet is then divided and searched. Edges do
// no harm: bin k begins at x y = (k - 1/8) / 16, every threshold is 2^-11 or more away from every
// edge, and so a q across the edge from x y is on the same side of all thresholds.

constexpr int BINS = 64;  // six bits number them; q reaches 33

// Fill `bins` [BINS] from thresholds [16].
__device__ inline void fill_bins(const float *thresholds, float *bins) {
  for (int i = threadIdx.x; i < BINS; i += blockDim.x) {
    const int bin = i < BINS / 2 ? i : i - BINS;  // the six bits are a two's complement
    const unsigned below = count_below<4>(thresholds, (bin - 0.125f) * 0.0625f);
    const float t = fminf(thresholds[below], 2.0f);  // the bits of +inf have no room for a number
    bins[i] = __uint_as_float((__float_as_uint(t) & ~15u) | below);
  }
  __syncthreads();
}

// Guess the codes of an octet; false if one of them may be wrong. NAMED: FP4, by size and names.
template <bool NAMED>
__device__ inline bool guess(
    const float *bins, int names, const float values[OCTET], float absmax, unsigned &octet) {
  bool sure = absmax >= 0x1p-100f && absmax <= 0x1p20f;  // nothing overflows or underflows
  const float y = __fdiv_rn(1.0f, absmax);
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    const float x = values[i ^ 1];  // each code enters at the top: the high nibble comes second
    const float size = NAMED ? fabsf(x) : x;
    const float t = bins[__float_as_uint(__fmaf_rn(size, y, 0x1.8p17f)) >> 2 & (BINS - 1)];
    const float difference = __fmaf_rn(-size, y, t);
    sure &= fabsf(difference) >= 0x1p-19f;  // not so for a NaN
    unsigned code = __float_as_uint(t) + (__float_as_uint(difference) >> 31);
    if (NAMED) {
      sure &= x >= 0.0f || x <= -0x1p-100f;  // a smaller one may have q = -0, which has no sign bit
      code = ((unsigned)names >> 4 * (code & 7u) & 7u) | (x < 0.0f ? 8u : 0u);
    }
    octet = octet >> 4 | code << 28;  // what is above the code's 4 bits falls out
  }
  return sure;
}

// The codes of an octet; the values are overwritten. Of 4 bits, the bins lie behind the thresholds.
template <int BITS>
__device__ inline Codes<BITS> encode(
    const float *thresholds, int names, float values[OCTET], float absmax) {
  Codes<BITS> octet = 0;
  if constexpr (BITS == 4) {
    const float *bins = thresholds + 16;
    if (names == 0 ? guess<false>(bins, names, values, absmax, octet)
                   : guess<true>(bins, names, values, absmax, octet)) {
      return octet;
    }
    octet = 0;
  }
  divide(values, absmax);
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    octet |= (Codes<BITS>)code_of<BITS>(thresholds, names, values[i]) << place_of<BITS>(i);
  }
  return octet;
}

// LONG: blocks of more than 256 elements, in passes.
template <int BITS, bool LONG, typename T>
__device__ inline void quantize_blocks(
    const T *x, const float *offset, const float *thresholds, int names, Byte *codes, float *absmax,
    Index n, int log_blocksize) {
  const int lane = threadIdx.x % WARP;
  const int lanes = LONG ? WARP : 1 << (log_blocksize - 3);
  const int passes = LONG ? 1 << (log_blocksize - 8) : 1;
  const bool first_of_block = (lane & (lanes - 1)) == 0;
  const Index span = (Index)passes * WARP_SPAN;
  const Index warps = (Index)gridDim.x * (blockDim.x / WARP);
  Index warp = (Index)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  for (; warp * span < n; warp += warps) {  // all lanes of a warp agree
    const Index own = warp * span + lane * OCTET;
    float values[OCTET];
    float largest = 0.0f;
    for (int pass = 0; pass < passes; ++pass) {
      load_octet(x, offset, own + pass * WARP_SPAN, n, values);
#pragma unroll
      for (int i = 0; i < OCTET; ++i) {
        largest = fmaxf(largest, fabsf(values[i]));
      }
    }
    largest = group_max(largest, lanes);
    if (first_of_block && own < n) {
      absmax[own >> log_blocksize] = largest;
    }
    for (int pass = 0; pass < passes; ++pass) {
      const Index first = own + pass * WARP_SPAN;
      if (passes > 1) {
        load_octet(x, offset, first, n, values);
      }
      store_codes<BITS>(codes, first, n, encode<BITS>(thresholds, names, values, largest));
    }
  }
}

template <int BITS, typename T>
__device__ inline void quantize(
    const T *x, const float *offset, const float *thresholds, int names, Byte *codes, float *absmax,
    Index n, int log_blocksize) {
  if (log_blocksize <= 8) {  // a warp's span or less, and nothing is looped over
    quantize_blocks<BITS, false>(x, offset, thresholds, names, codes, absmax, n, log_blocksize);
  } else {
    quantize_blocks<BITS, true>(x, offset, thresholds, names, codes, absmax, n, log_blocksize);
  }
}

// levels [count]: those of a table with one threshold a bin at most, in order (of FP4 the 8
// magnitudes); packed [ceil(n / 2)]; absmax [ceil(n / blocksize)].
#define QUANTIZE_4BIT(T, type)                                                             \
  extern "C" __global__ void quantize_4bit_##type(                                         \
      const T *x, const float *levels, int count, int names, Byte *packed, float *absmax,  \
      Index n, int log_blocksize) {                                                        \
    SHARED(float, thresholds, 16 + BINS);                                                  \
    fill_thresholds<4>(levels, count, thresholds);                                         \
    fill_bins(thresholds, thresholds + 16);                                                \
    quantize<4>(x, nullptr, thresholds, names, packed, absmax, n, log_blocksize);          \
  }
FOR_EACH_FLOAT(QUANTIZE_4BIT)

// levels [count]: 2 to 256, in order; codes [n]; absmax [ceil(n / blocksize)].
#define QUANTIZE_BLOCKWISE(T, type)                                                        \
  extern "C" __global__ void quantize_blockwise_##type(                                    \
      const T *x, const float *levels, int count, Byte *codes, float *absmax, Index n,     \
      int log_blocksize) {                                                                 \
    SHARED(float, thresholds, 256);                                                        \
    fill_thresholds<8>(levels, count, thresholds);                                         \
    quantize<8>(x, nullptr, thresholds, 0, codes, absmax, n, log_blocksize);               \
  }
FOR_EACH_FLOAT(QUANTIZE_BLOCKWISE)
