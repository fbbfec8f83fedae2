// Decode 4-bit or 8-bit codes: level times scale (S7), the scales as they are or nested (S8).
//
//     value  = RN_T(RN(level[code] absmax))              to float32, then to T: nearest, ties even
//     absmax = RN(RN(map[code] nested_absmax) + offset)  where scales are nested: two roundings
//
// Launch: 256 threads; a lane decodes UNROLL octets, a grid's width apart, so that all loads are on
// their way before the first store. An octet lies in one block, since block sizes are powers of two
// from 32 to 4096, passed as their logarithm.
// Bytes for each element: BITS / 8 + 4 / blocksize + sizeof(T); nested, BITS / 8 + (1 + 4 / 256) /
// blocksize + sizeof(T). That is 2.5625 and 2.516 for NF4 to bfloat16 in blocks of 64.
//
// A code that names no level decodes to NaN: int4 has one. absmax may be negative, and is finite.

constexpr int UNROLL = 4;

// Copy a codebook of `count` levels into shared memory; NaN stands behind its end.
template <int BITS>
__device__ inline void fill_levels(const float *levels, int count, float *table) {
  for (int i = threadIdx.x; i < 1 << BITS; i += blockDim.x) {
    table[i] = i < count ? levels[i] : __uint_as_float(0x7FC00000u);
  }
}

// S8's decode: a product and a sum, each rounded, never one fused operation.
__device__ inline float nested_scale(float level, float nested_absmax, float offset) {
  return __fadd_rn(__fmul_rn(level, nested_absmax), offset);
}

// ---- where the scale of a block comes from ------------------------------------------------------

struct PlainScale {
  const float *absmax;

  __device__ float of(Index block) const { return absmax[block]; }
};

struct NestedScale {
  const Byte *codes;
  const float *map;  // 256 levels, in shared memory
  const float *nested_absmax;
  const float *offset;
  int log_group;  // log2 of the scales that share one nested_absmax

  __device__ float of(Index block) const {
    return nested_scale(map[codes[block]], nested_absmax[block >> log_group], offset[0]);
  }
};

// ---- octets -------------------------------------------------------------------------------------

// Decode the codes of an octet by `table` in shared memory; add the offset where there is one (S8).
template <int BITS>
__device__ inline void decode(
    Codes<BITS> codes, float scale, const float *offset, const float *table, float octet[OCTET]) {
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    octet[i] = __fmul_rn(table[codes >> place_of<BITS>(i) & ((1 << BITS) - 1)], scale);
    octet[i] = offset == nullptr ? octet[i] : __fadd_rn(octet[i], offset[0]);
  }
}

// Decode what of the octet at element `first` lies before the end, byte by byte.
template <int BITS, typename T>
__device__ inline void decode_rest(
    const Byte *codes, float scale, const float *offset, const float *table, T *values, Index first,
    Index n) {
  Codes<BITS> own = 0;
  for (int j = 0; j < BITS && first + j * OCTET / BITS < n; ++j) {
    own |= (Codes<BITS>)codes[(first >> 3) * BITS + j] << 8 * j;
  }
  float octet[OCTET];
  decode<BITS>(own, scale, offset, table, octet);
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    if (first + i < n) {
      values[first + i] = from_float<T>(octet[i]);
    }
  }
}

template <int BITS, typename T, typename Scale>
__device__ inline void dequantize(
    const Byte *codes, Scale scale, const float *offset, const float *table, T *values, Index n,
    int log_blocksize) {
  const bool aligned = is_aligned(codes, BITS) && is_aligned(values, 16);
  const Index width = (Index)gridDim.x * blockDim.x * OCTET;
  const Index own = ((Index)blockIdx.x * blockDim.x + threadIdx.x) * OCTET;
  for (Index begin = own; begin < n; begin += width * UNROLL) {
    if (aligned && begin + (UNROLL - 1) * width + OCTET <= n) {
      Codes<BITS> octets[UNROLL];
      float scales[UNROLL];
#pragma unroll
      for (int k = 0; k < UNROLL; ++k) {
        const Index first = begin + k * width;
        octets[k] = *(const Codes<BITS> *)(codes + (first >> 3) * BITS);
        scales[k] = scale.of(first >> log_blocksize);
      }
#pragma unroll
      for (int k = 0; k < UNROLL; ++k) {
        float octet[OCTET];
        decode<BITS>(octets[k], scales[k], offset, table, octet);
        store8(((Octet<T> *)values)[(begin + k * width) / OCTET].element, octet);
      }
    } else {
#pragma unroll 1
      for (int k = 0; k < UNROLL && begin + k * width < n; ++k) {
        const Index first = begin + k * width;
        const float own_scale = scale.of(first >> log_blocksize);
        decode_rest<BITS>(codes, own_scale, offset, table, values, first, n);
      }
    }
  }
}

// ---- kernels ------------------------------------------------------------------------------------

// packed [ceil(n / 2)]; absmax [ceil(n / blocksize)]; levels [count]: at most 16, in code order.
#define DEQUANTIZE_4BIT(T, type)                                                           \
  extern "C" __global__ void dequantize_4bit_##type(                                       \
      const Byte *packed, const float *absmax, const float *levels, int count, T *values,  \
      Index n, int log_blocksize) {                                                        \
    SHARED(float, table, 16);                                                              \
    fill_levels<4>(levels, count, table);                                                  \
    __syncthreads();                                                                       \
    dequantize<4>(packed, PlainScale{absmax}, nullptr, table, values, n, log_blocksize);   \
  }
FOR_EACH_FLOAT(DEQUANTIZE_4BIT)

// The same in one launch with nested scales: scale_codes [blocks], nested_absmax [ceil(blocks /
// group)], offset [1] and map [map_count], at most 256 levels.
#define DEQUANTIZE_4BIT_NESTED(T, type)                                                    \
  extern "C" __global__ void dequantize_4bit_nested_##type(                                \
      const Byte *packed, const Byte *scale_codes, const float *nested_absmax,             \
      const float *offset, const float *map, int map_count, const float *levels,           \
      int count, T *values, Index n, int log_blocksize, int log_group) {                   \
    SHARED(float, table, 16);                                                              \
    SHARED(float, map_table, 256);                                                         \
    fill_levels<4>(levels, count, table);                                                  \
    fill_levels<8>(map, map_count, map_table);                                             \
    __syncthreads();                                                                       \
    const NestedScale scale{scale_codes, map_table, nested_absmax, offset, log_group};     \
    dequantize<4>(packed, scale, nullptr, table, values, n, log_blocksize);                \
  }
FOR_EACH_FLOAT(DEQUANTIZE_4BIT_NESTED)

// codes [n]; absmax [ceil(n / blocksize)]; levels [count]: at most 256.
#define DEQUANTIZE_BLOCKWISE(T, type)                                                      \
  extern "C" __global__ void dequantize_blockwise_##type(                                  \
      const Byte *codes, const float *absmax, const float *levels, int count, T *values,   \
      Index n, int log_blocksize) {                                                        \
    SHARED(float, table, 256);                                                             \
    fill_levels<8>(levels, count, table);                                                  \
    __syncthreads();                                                                       \
    dequantize<8>(codes, PlainScale{absmax}, nullptr, table, values, n, log_blocksize);    \
  }
FOR_EACH_FLOAT(DEQUANTIZE_BLOCKWISE)
