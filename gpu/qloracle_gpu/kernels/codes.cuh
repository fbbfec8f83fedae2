// The codes of values over their block's absmax, by one exact comparison each (S2, S5).
//
//     q    = x / absmax                           one correctly rounded division
//     code = number of thresholds t with q > t    a tie takes the lower code
//
// Neither the quotient nor a search is needed. x times a reciprocal falls into a bin, to which one
// threshold belongs, or none, and then t is the next one above. So the bin tells the code but for
// one comparison, and that is exact. With h half the distance from t to the next float above,
//
//     q > t  if and only if  s = RN(absmax h + RN(absmax t - x)) < 0        (two fused operations)
//
// For q = RN(x / absmax) > t means x > absmax (t + h), the middle of two floats. They are not equal:
// t + h has 25 significant bits, absmax (t + h) no fewer, x has 24. Let g be an ulp of absmax times
// an ulp of t, at least 2^-148 by the limits below. Where absmax t - x is 2 absmax h at most, hence
// less than 2^24 g, it is a multiple of g, as absmax t and x are, and 24 bits hold it: the inner
// operation is exact, and the outer one rounds absmax (t + h) - x, which keeps its sign. Elsewhere
// the inner one leaves RN(2 absmax h) or more, and the outer one does not turn its sign. Of t = 0,
// h is 2^-150, and the inner operation is exact for any x. Here both may be equal, as q is 0 in a
// tie: then s is +0.
//
// Of the product, which tells the bin, no more is asked than that it is off by 2^-22 of itself. A
// threshold as near as that to the edge of a bin belongs to both. Where two belong to one bin, or t
// is below its limit and not 0, the bin is marked, and the octet is divided and searched. No table
// of 4 bits has such a bin, and neither dynamic map has.

constexpr float LEAST_T = 0x1p-26f, LEAST_ABSMAX = 0x1p-76f, MOST_ABSMAX = 0x1p100f;

constexpr unsigned SEARCH = 0x100u;  // the mark

struct alignas(8) Bin {
  float t;
  unsigned word;  // the bits of 2^24 h, a power of two; the mark; 8 bits: the thresholds below it
};

template <int BITS>
constexpr int BINS = BITS == 4 ? 64 : 1024;

// What the codes of BITS bits are made by, in shared memory.
template <int BITS>
struct Coder {
  const float *thresholds;  // [1 << BITS]; +inf stands behind the last
  const Bin *bins;          // [BINS]
  int names;                // of FP4, as `named` takes them; else 0
};

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

// ---- bins ---------------------------------------------------------------------------------------

// Where the bin of x lies in its table, in bytes; y = RN(1 / (4 absmax)). Bins have numbers from
// -BINS / 2 up, as two's complements.
//
// 4 bits: bins of equal width, 1/16 in q. A number is rounded into the bits 3 and up of `at`.
// 8 bits: thresholds lie the denser the smaller they are, and so do bins. The bits of a float z,
// shifted by two, are those of about 2^-95 z^(1/4), linear between powers of 2: up to q = 1/2, 4
// binades have 204 bins, the next 4 have 102, and so on; from 1/2 to 1 are 102.
template <int BITS>
__device__ inline unsigned place_of_bin(float x, float y) {
  float at;
  if constexpr (BITS == 4) {
    at = __fmaf_rn(x, y, 0x1.8p14f);
  } else {
    const int bits = __float_as_int(__fmul_rn(x, y));
    const float root = __int_as_float(bits >> 2 & (int)0x9FFFFFFF);
    at = __fmaf_rn(root, 0x1.98p107f, 0x1.8p23f);  // q = 1 is in bin 510
  }
  return __float_as_uint(at) & sizeof(Bin) * (BINS<BITS> - 1);
}

// The number of the first bin to which t belongs, or of the last: those of t (1 -+ 2^-21). A t
// beyond all q is in a bin beyond all q.
template <int BITS, bool LAST>
__device__ inline int bin_of(float t) {
  const float within = fminf(fmaxf(t, -0x1.04p0f), 0x1.04p0f);
  const float near = __fmul_rn(within, (t > 0.0f) == LAST ? 1 + 0x1p-21f : 1 - 0x1p-21f);
  constexpr int above = BITS == 4 ? 23 : 19;  // bits above the number, which has 3 below
  return (int)(place_of_bin<BITS>(near, 0.25f) << above) >> (above + 3);
}

// The bits of 2^24 h, with h half the distance from t to the next float above.
__device__ inline unsigned half_a_step(float t) {
  const unsigned bits = __float_as_uint(t);
  const float next = __uint_as_float(t >= 0.0f ? bits + 1 : bits - 1);
  return __float_as_uint(__fmul_rn(__fsub_rn(next, t), 0x1p23f)) & 0x7F800000u;
}

// Fill `bins`: those behind the last of the threshold before, up to the last of t, have t.
template <int BITS>
__device__ inline void fill_bins(const float *thresholds, Bin *bins) {
  constexpr int END = (1 << BITS) - 1;  // beyond all q
  for (int i = threadIdx.x; i <= END; i += blockDim.x) {
    const float t = thresholds[i], next = thresholds[i < END ? i + 1 : END];
    const float finite = fminf(t, 2.0f);
    const unsigned word = half_a_step(finite) | (unsigned)i;
    const int before = i > 0 ? bin_of<BITS, true>(thresholds[i - 1]) : -BINS<BITS> / 2 - 1;
    const int last = bin_of<BITS, true>(t);
    const bool small = t != 0.0f && fabsf(t) < LEAST_T;
    const int marked = bin_of<BITS, false>(small ? t : next);
    for (int k = before + 1; k <= last; ++k) {
      bins[k & (BINS<BITS> - 1)] = Bin{finite, k < marked ? word : word | SEARCH};
    }
  }
  __syncthreads();
}

// Fill both tables of a coder; all threads arrive.
template <int BITS>
__device__ inline Coder<BITS> make_coder(
    const float *levels, int count, int names, float *thresholds, Bin *bins) {
  fill_thresholds<BITS>(levels, count, thresholds);
  fill_bins<BITS>(thresholds, bins);
  return Coder<BITS>{thresholds, bins, names};
}

// ---- an octet -----------------------------------------------------------------------------------

// The largest |value| of an octet and of what came before, a NaN left out; `strange` tells of one.
__device__ inline float largest_of(const float octet[OCTET], float so_far, bool &strange) {
  unsigned most = __float_as_uint(so_far);  // numbers without a sign are in order as their bits are
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    const unsigned size = __float_as_uint(octet[i]) & 0x7FFFFFFFu;
    most = size > most ? size : most;
  }
  if (most <= 0x7F800000u) {
    return __uint_as_float(most);
  }
  strange = true;
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    so_far = fmaxf(so_far, fabsf(octet[i]));
  }
  return so_far;
}

// The lowest bytes of four words, or the highest: a word, the last of them on top.
template <bool HIGHEST>
__device__ inline unsigned bytes_of(const unsigned words[4]) {
  constexpr unsigned chosen = HIGHEST ? 0x0073u : 0x0040u;
  const unsigned low = __byte_perm(words[0], words[1], chosen);
  return __byte_perm(low, __byte_perm(words[2], words[3], chosen), 0x5410);
}

// What the codes of a block are made by: factors of x, of t and of a step.
struct Scale {
  float y, absmax, shrunk;
};

// Four codes as four bytes, of every STEP-th value from `values` on; `marks` takes up their words.
// Of FP4 those of the sizes.
template <int BITS, int STEP, bool SIZES>
__device__ inline unsigned four_codes(
    const Bin *bins, const float *values, const Scale &of, unsigned &marks) {
  unsigned words[4], s[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = SIZES ? fabsf(values[STEP * i]) : values[STEP * i];
    const Bin bin = *(const Bin *)((const Byte *)bins + place_of_bin<BITS>(x, of.y));
    const float step = __uint_as_float(bin.word & 0x7F800000u);
    s[i] = __float_as_uint(__fmaf_rn(of.shrunk, step, __fmaf_rn(of.absmax, bin.t, -x)));
    words[i] = bin.word;
    marks |= bin.word;
  }
  return bytes_of<false>(words) + (bytes_of<true>(s) >> 7 & 0x01010101u);
}

// The codes of an octet by its bins, of FP4 those of the sizes; false if a bin is marked.
template <int BITS, bool SIZES>
__device__ inline bool code_by_bins(
    const Bin *bins, const float values[OCTET], float absmax, Codes<BITS> &octet) {
  const Scale of{__fdiv_rn(0.25f, absmax), absmax, __fmul_rn(absmax, 0x1p-24f)};
  unsigned marks = 0;
  if constexpr (BITS == 4) {  // an element 2k is the high nibble; no bin is marked
    octet = four_codes<4, 2, SIZES>(bins, values, of, marks) << 4;
    octet |= four_codes<4, 2, SIZES>(bins, values + 1, of, marks);
    return true;
  } else {
    octet = four_codes<8, 1, SIZES>(bins, values, of, marks);
    octet |= (Address)four_codes<8, 1, SIZES>(bins, values + 4, of, marks) << 32;
    return (marks & SEARCH) == 0;
  }
}

// FP4's codes do not follow the size: nibble i of `names` is the 3-bit code of magnitude i, and the
// sign is bit 3 of the code. A codebook in order has names = 0.
__device__ inline unsigned named(int names, unsigned magnitude, bool negative) {
  return ((unsigned)names >> 4 * magnitude & 7u) | (negative ? 8u : 0u);
}

// Name the sizes of an octet; false where q may be -0, which has no sign bit in its code.
__device__ inline bool name_sizes(
    int names, const float values[OCTET], float absmax, unsigned &octet) {
  const float tiny = __fmul_rn(absmax, -0x1p-30f);
  const unsigned sizes = octet;
  bool sure = true;
  octet = 0;
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    const float x = values[i];
    sure &= x >= 0.0f || x <= tiny;
    octet |= named(names, sizes >> place_of<4>(i) & 7u, x < 0.0f) << place_of<4>(i);
  }
  return sure;
}

// ---- a search, where bins do not tell -----------------------------------------------------------

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

template <int BITS>
__device__ inline Codes<BITS> search(
    const Coder<BITS> &by, const float values[OCTET], float absmax) {
  const float divisor = absmax == 0.0f ? 1.0f : absmax;  // a block of zeros keeps its zeros
  Codes<BITS> octet = 0;
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    const float q = __fdiv_rn(values[i], divisor);
    const unsigned code = by.names == 0
        ? count_below<BITS>(by.thresholds, q)
        : named(by.names, count_below<3>(by.thresholds, fabsf(q)), q < 0.0f);
    octet |= (Codes<BITS>)code << place_of<BITS>(i);
  }
  return octet;
}

// The codes of an octet; `strange`: it may hold a NaN, whose code is 0.
template <int BITS>
__device__ inline Codes<BITS> encode(
    const Coder<BITS> &by, const float values[OCTET], float absmax, bool strange) {
  if (!strange && absmax >= LEAST_ABSMAX && absmax <= MOST_ABSMAX) {
    Codes<BITS> octet;
    if constexpr (BITS == 4) {
      if (by.names != 0) {
        code_by_bins<4, true>(by.bins, values, absmax, octet);
        if (name_sizes(by.names, values, absmax, octet)) {
          return octet;
        }
        return search(by, values, absmax);
      }
    }
    if (code_by_bins<BITS, false>(by.bins, values, absmax, octet)) {
      return octet;
    }
  }
  return search(by, values, absmax);
}
