// A few rows of x times a packed 4-bit weight that is never there as a whole (S9).
//
//     y[m, n] = RN_T(sum over k of x[m, k] w[n, k], + bias[n])  sums in float32, fused
//     w       = RN(level[code] absmax)                          those of `dequantize_4bit`, float32
//
// Every output is summed in one order, which N and K alone decide: lane l of a warp adds octets l,
// l + 32, ... of the warp's share of K, one element after the other; then the lanes add by halves,
// 16 lanes apart, 8, 4, 2 and 1; then the warps that share K add, one after the other. So a row of
// y has the same bits however many rows there are, and wherever the arrays begin.
//
// Launch: 256 threads, 8 warps. A warp decodes octets of COLUMNS rows of W and uses each for ROWS
// rows of x. `splits` (1, 2, 4 or 8) warps share K, the others of a block have other columns. The
// grid has ceil(N / (8 COLUMNS / splits)) blocks for each tile of ROWS rows of x.
//   product_4bit_<rows>_<type>: K is a multiple of 8, x is aligned to 16 bytes and packed to 4; a
//       lane loads 4 bytes of codes for each column, and 8 elements of x in 16 bytes.
//   product_4bit_any_<type>: any K, any alignment; elements one by one, and one row of x.
// Bytes: N K (1/2 + 4 / blocksize), nested about N K (1/2 + 1 / blocksize); (M K + M N) sizeof(T).
//
// A code that names no level makes its sums NaN.

constexpr int COLUMNS = 4;
constexpr int PRODUCT_WARPS = 8;
constexpr int MOST_SUMS = COLUMNS * 16;  // of one warp

// Aligned so that a level's address is base | offset, one instruction with the mask of its code.
struct alignas(64) Levels {
  float level[16];
};

struct Weight {
  const Byte *packed;
  const Levels *levels;  // in shared memory
  PlainScale plain;
  NestedScale nested;  // instead, where it has codes
  int log_blocksize;

  __device__ float scale(Index block) const {
    return nested.codes == nullptr ? plain.of(block) : nested.of(block);
  }

  __device__ float level(unsigned codes, int shift) const {
    return levels->level[codes >> shift & 15u];
  }
};

// A row of W, from which octets are taken: of each only a number of 32 bits is to be computed.
template <bool OCTETS>
struct WeightRow;

// Rows begin at an octet, and each octet lies in one block.
template <>
struct WeightRow<true> {
  const Byte *packed;
  Index block;  // the row's first
  int ahead;    // elements of that block that belong to rows before
  unsigned codes;
  float absmax;

  __device__ void begin(const Weight &weight, Index first) {
    packed = weight.packed + (first >> 1);
    block = first >> weight.log_blocksize;
    ahead = (int)(first - (block << weight.log_blocksize));
  }

  __device__ void load(const Weight &weight, int at, int) {
    codes = *(const unsigned *)(packed + (at >> 1));
    absmax = weight.scale(block + ((ahead + at) >> weight.log_blocksize));
  }

  __device__ void decode(const Weight &weight, float octet[OCTET]) const {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {  // element 2k has the high nibble (S6)
      octet[i] = __fmul_rn(weight.level(codes, 4 * (i ^ 1)), absmax);
    }
  }
};

// Rows begin anywhere.
template <>
struct WeightRow<false> {
  Index first;
  float values[OCTET];

  __device__ void begin(const Weight &, Index element) { first = element; }

  __device__ void load(const Weight &weight, int at, int count) {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      values[i] = 0.0f;
      if (i < count) {
        const Index element = first + at + i;
        const float level = weight.level(weight.packed[element >> 1], element & 1 ? 0 : 4);
        values[i] = __fmul_rn(level, weight.scale(element >> weight.log_blocksize));
      }
    }
  }

  __device__ void decode(const Weight &, float octet[OCTET]) const {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      octet[i] = values[i];
    }
  }
};

// Add up each of COUNT sums over the lanes of a warp. At every distance a lane hands over one half
// of its sums, and adds to the other what its partner hands over: COUNT shuffles, not 5 COUNT. In
// the end it holds the sums from lane * COUNT / 32 on, COUNT / 32 of them or one.
template <int COUNT, int DISTANCE = WARP / 2>
__device__ inline void add_lanes(float *sums) {
  if constexpr (DISTANCE > 0) {
    constexpr int HALF = (COUNT + 1) / 2;
    const bool upper = COUNT > 1 && (threadIdx.x & DISTANCE) != 0;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
      const float given = upper ? sums[i] : sums[COUNT - HALF + i];
      const float kept = upper ? sums[COUNT - HALF + i] : sums[i];
      sums[i] = __fadd_rn(kept, __shfl_xor_sync(ALL_LANES, given, DISTANCE));
    }
    add_lanes<HALF, DISTANCE / 2>(sums);
  }
}

struct Dimensions {
  Index m, n;
  int k, splits;
};

// Load the octets at element `at` of some rows, if the rows are that long.
template <bool OCTETS>
__device__ inline void load_rows(
    WeightRow<OCTETS> rows[COLUMNS], const Weight &weight, int at, int k) {
  if (at < k) {
    const int count = k - at < OCTET ? k - at : OCTET;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      rows[c].load(weight, at, count);
    }
  }
}

// sums[column][row]: this warp's part of the products of COLUMNS columns and ROWS rows. Beyond the
// last row or column stands the last one again.
template <int ROWS, bool OCTETS, typename T>
__device__ inline void multiply(
    const T *x, const Weight &weight, const Dimensions &size, Index row, Index column, int split,
    float *sums) {
  WeightRow<OCTETS> rows[COLUMNS];
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    rows[c].begin(weight, (column + c < size.n ? column + c : size.n - 1) * size.k);
  }
  const int step = size.splits * WARP_SPAN;
  const int own = split * WARP_SPAN + threadIdx.x % WARP * OCTET;
  constexpr bool AHEAD = OCTETS && ROWS <= 4;  // more rows need the registers, and wait less
  if constexpr (AHEAD) {
    load_rows(rows, weight, own, size.k);
  }
  for (int at = own; at < size.k; at += step) {
    if constexpr (!AHEAD) {
      load_rows(rows, weight, at, size.k);
    }
    float w[COLUMNS][OCTET];
    WeightRow<OCTETS> loaded[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      loaded[c] = rows[c];
    }
    if constexpr (AHEAD) {
      load_rows(rows, weight, at + step, size.k);  // on their way while these are used
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
      loaded[c].decode(weight, w[c]);
    }
    const int count = size.k - at < OCTET ? size.k - at : OCTET;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const T *from = x + (row + r < size.m ? row + r : size.m - 1) * size.k + at;
      float octet[OCTET];
      if constexpr (OCTETS) {
        load8(from, octet);
      } else {
#pragma unroll
        for (int i = 0; i < OCTET; ++i) {
          octet[i] = i < count ? to_float(from[i]) : 0.0f;
        }
      }
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) {
#pragma unroll
        for (int i = 0; i < OCTET; ++i) {
          sums[c * ROWS + r] = __fmaf_rn(octet[i], w[c][i], sums[c * ROWS + r]);
        }
      }
    }
  }
}

// bias [N] is of x's type, or wide_bias of float32, or both are null. parts: room for all sums.
template <int ROWS, bool OCTETS, typename T>
__device__ inline void product_4bit(
    const T *x, const Weight &weight, const T *bias, const float *wide_bias, T *y,
    const Dimensions &size, float *parts) {
  constexpr int COUNT = COLUMNS * ROWS;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int width = COLUMNS * PRODUCT_WARPS / size.splits;  // columns of a block
  const Index blocks = (size.n + width - 1) / width;
  const Index row = blockIdx.x / blocks * ROWS, column = blockIdx.x % blocks * width;
  float sums[COUNT] = {};
  multiply<ROWS, OCTETS>(
      x, weight, size, row, column + warp / size.splits * COLUMNS, warp % size.splits, sums);
  add_lanes<COUNT>(sums);
  if (lane * COUNT % WARP == 0) {
#pragma unroll
    for (int i = 0; i < (COUNT + WARP - 1) / WARP; ++i) {
      parts[warp * COUNT + lane * COUNT / WARP + i] = sums[i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < width * ROWS; i += blockDim.x) {
    const Index to_row = row + i % ROWS, to_column = column + i / ROWS;
    const float *part = parts + i / COUNT * size.splits * COUNT + i % COUNT;
    float sum = part[0];
    for (int split = 1; split < size.splits; ++split) {
      sum = __fadd_rn(sum, part[split * COUNT]);
    }
    if (to_row < size.m && to_column < size.n) {
      sum = bias == nullptr ? sum : __fadd_rn(sum, to_float(bias[to_column]));
      sum = wide_bias == nullptr ? sum : __fadd_rn(sum, wide_bias[to_column]);
      y[to_row * size.n + to_column] = from_float<T>(sum);
    }
  }
}

// ---- kernels ------------------------------------------------------------------------------------

// x [m, k]; packed [ceil(n k / 2)]; absmax [ceil(n k / blocksize)], or in its place scale_codes of
// that length, nested_absmax, offset [1] and map [map_count]; levels [count]; y [m, n].
#define PRODUCT_4BIT(T, type, name, ROWS, OCTETS)                                               \
  extern "C" __global__ void product_4bit_##name##_##type(                                      \
      const T *x, const Byte *packed, const float *absmax, const Byte *scale_codes,             \
      const float *nested_absmax, const float *offset, const float *map, int map_count,         \
      int log_group, const float *levels, int count, int log_blocksize, const T *bias,          \
      const float *wide_bias, T *y, Index m, Index n, int k, int splits) {                    \
    SHARED(Levels, table, 1);                                                                   \
    SHARED(float, map_table, 256);                                                              \
    SHARED(float, parts, PRODUCT_WARPS *MOST_SUMS);                                             \
    fill_levels<4>(levels, count, table->level);                                                \
    if (scale_codes != nullptr) {                                                               \
      fill_levels<8>(map, map_count, map_table);                                                \
    }                                                                                           \
    __syncthreads();                                                                            \
    const NestedScale nested{scale_codes, map_table, nested_absmax, offset, log_group};         \
    const Weight weight{packed, table, PlainScale{absmax}, nested, log_blocksize};              \
    const Dimensions size{m, n, k, splits};                                                     \
    product_4bit<ROWS, OCTETS>(x, weight, bias, wide_bias, y, size, parts);                     \
  }

#define PRODUCTS_4BIT(T, type)             \
  PRODUCT_4BIT(T, type, 1, 1, true)        \
  PRODUCT_4BIT(T, type, 2, 2, true)        \
  PRODUCT_4BIT(T, type, 4, 4, true)        \
  PRODUCT_4BIT(T, type, 8, 8, true)        \
  PRODUCT_4BIT(T, type, 16, 16, true)      \
  PRODUCT_4BIT(T, type, any, 1, false)
FOR_EACH_FLOAT(PRODUCTS_4BIT)
