// Quantize to 4 bits or to 8: the absmax of each block, and a code for each element (S3 to S6).
//
//     absmax = max |x| of the block                      exact, in any order              (S4)
//     code   = number of thresholds t with x / absmax > t, as codes.cuh finds it          (S5)
//
// Launch: 256 threads, six blocks of them to a multiprocessor by their registers; any grid, since
// warps stride over the tensor. A lane owns an octet, 8 neighbouring elements, and blocksize / 8
// lanes own a block: a warp takes several small blocks at once, or one block of more than 256
// elements in several passes. Block sizes are the powers of two from 32 to 4096, passed as their
// logarithm.
// Bytes for each element: sizeof(T) + BITS / 8 + 4 / blocksize, which is 2.5625 for NF4 of bfloat16
// in blocks of 64. (A block of more than 256 is read twice, the second time from a cache.)
//
// All of x is finite. Otherwise: a NaN is left out of absmax, and its code is 0.

constexpr int WARP_SPAN = WARP * OCTET;  // elements of a warp in one pass

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

// LONG: blocks of more than 256 elements, in passes.
template <int BITS, bool LONG, typename T>
__device__ inline void quantize_blocks(
    const T *x, const float *offset, const Coder<BITS> &by, Byte *codes, float *absmax, Index n,
    int log_blocksize) {
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
    bool strange = false;
    for (int pass = 0; pass < passes; ++pass) {
      load_octet(x, offset, own + pass * WARP_SPAN, n, values);
      largest = largest_of(values, largest, strange);
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
      store_codes<BITS>(codes, first, n, encode(by, values, largest, strange));
    }
  }
}

template <int BITS, typename T>
__device__ inline void quantize(
    const T *x, const float *offset, const Coder<BITS> &by, Byte *codes, float *absmax, Index n,
    int log_blocksize) {
  if (log_blocksize <= 8) {  // a warp's span or less, and nothing is looped over
    quantize_blocks<BITS, false>(x, offset, by, codes, absmax, n, log_blocksize);
  } else {
    quantize_blocks<BITS, true>(x, offset, by, codes, absmax, n, log_blocksize);
  }
}

// levels [count]: those of a table of which no bin is marked, in order (of FP4 the 8 magnitudes);
// packed [ceil(n / 2)]; absmax [ceil(n / blocksize)].
#define QUANTIZE_4BIT(T, type)                                                             \
  extern "C" __global__ void __launch_bounds__(256, 6) quantize_4bit_##type(               \
      const T *x, const float *levels, int count, int names, Byte *packed, float *absmax,  \
      Index n, int log_blocksize) {                                                        \
    SHARED(float, thresholds, 16);                                                         \
    SHARED(Bin, bins, BINS<4>);                                                            \
    const Coder<4> by = make_coder<4>(levels, count, names, thresholds, bins);             \
    quantize(x, nullptr, by, packed, absmax, n, log_blocksize);                            \
  }
FOR_EACH_FLOAT(QUANTIZE_4BIT)

// levels [count]: 2 to 256, in order; codes [n]; absmax [ceil(n / blocksize)].
#define QUANTIZE_BLOCKWISE(T, type)                                                        \
  extern "C" __global__ void __launch_bounds__(256, 6) quantize_blockwise_##type(          \
      const T *x, const float *levels, int count, Byte *codes, float *absmax, Index n,     \
      int log_blocksize) {                                                                 \
    SHARED(float, thresholds, 256);                                                        \
    SHARED(Bin, bins, BINS<8>);                                                            \
    const Coder<8> by = make_coder<8>(levels, count, 0, thresholds, bins);                 \
    quantize(x, nullptr, by, codes, absmax, n, log_blocksize);                             \
  }
FOR_EACH_FLOAT(QUANTIZE_BLOCKWISE)
