// One step of Adam for many tensors, in one launch: moments in 32 bits (S11) and in 8 (S11b).
//
//     g  = g + wd p                              if the decay is coupled
//     m' = b1 m + (1 - b1) g,   v' = b2 v + ((1 - b2) g) g
//     p' = p (1 - lr wd) - lr ((m' / c1) / (sqrt(v' / c2) + eps)), rounded once more, to its type
//
// Each operation is rounded by itself, in the reference's order, and so the bits are its own. The
// host forms the constants in float64 and rounds each once. A new array may be the old one: what is
// overwritten has been read, by the same thread or before the warp has met.
//
// A block of threads takes a chunk of a tensor. The host's tables say which: `owners` [gridDim.x]
// the tensor of each chunk; `first_chunks` the first chunk and `sizes` the elements of each tensor;
// `addresses` its arrays.

struct AdamConstants {
  float b1, one_minus_b1, b2, one_minus_b2, c1, c2, lr, eps, coupled, kept;
};

struct Chunk {
  int tensor;
  Index start, n;  // the chunk's first element, the tensor's elements
};

__device__ inline Chunk own_chunk(
    const int *owners, const Index *first_chunks, const Index *sizes, Index length) {
  const int tensor = owners[blockIdx.x];
  return Chunk{tensor, ((Index)blockIdx.x - first_chunks[tensor]) * length, sizes[tensor]};
}

// The octet at element `at`, of which the first `count` are there. WHOLE: all are, and the array is
// aligned to 16 bytes.
template <bool WHOLE, typename T>
__device__ inline void load_first(const T *from, Index at, int count, float octet[OCTET]) {
  if constexpr (WHOLE) {
    load8(((const Octet<T> *)from)[at / OCTET].element, octet);
  } else {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      octet[i] = i < count ? to_float(from[at + i]) : 0.0f;
    }
  }
}

template <bool WHOLE, typename T>
__device__ inline void store_first(T *to, Index at, int count, const float octet[OCTET]) {
  if constexpr (WHOLE) {
    store8(((Octet<T> *)to)[at / OCTET].element, octet);
  } else {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      if (i < count) {
        to[at + i] = from_float<T>(octet[i]);
      }
    }
  }
}

__device__ inline void update_moments(float g, const AdamConstants &k, float &m, float &v) {
  m = __fadd_rn(__fmul_rn(k.b1, m), __fmul_rn(k.one_minus_b1, g));
  v = __fadd_rn(__fmul_rn(k.b2, v), __fmul_rn(__fmul_rn(k.one_minus_b2, g), g));
}

__device__ inline float moved(float p, float m, float v, const AdamConstants &k) {
  const float root = __fsqrt_rn(__fdiv_rn(v, k.c2));
  const float ratio = __fdiv_rn(__fdiv_rn(m, k.c1), __fadd_rn(root, k.eps));
  return __fsub_rn(__fmul_rn(p, k.kept), __fmul_rn(k.lr, ratio));
}

// ---- moments in 32 bits -------------------------------------------------------------------------
//
// Launch: 256 threads; a block for each ADAM_CHUNK elements of each tensor. A thread takes octets,
// in loads and stores of 16 bytes where all arrays of the tensor are aligned so.
// Bytes for each element: 16, 2 sizeof(P) and sizeof(G), which is 28 for float32, 22 for bfloat16.

constexpr int ADAM_CHUNK = 4096;

// The arrays of one tensor, as their addresses stand in the host's table.
template <typename P, typename G>
struct AdamArrays {
  const P *param;
  const G *grad;
  const float *m, *v;
  P *new_param;
  float *new_m, *new_v;

  __device__ bool aligned() const {
    return is_aligned(param, 16) && is_aligned(grad, 16) && is_aligned(m, 16) &&
           is_aligned(v, 16) && is_aligned(new_param, 16) && is_aligned(new_m, 16) &&
           is_aligned(new_v, 16);
  }
};

template <bool WHOLE, typename P, typename G>
__device__ inline void adam_octet(
    const AdamArrays<P, G> &of, Index at, int count, const AdamConstants &k) {
  float p[OCTET], g[OCTET], m[OCTET], v[OCTET];
  load_first<WHOLE>(of.param, at, count, p);
  load_first<WHOLE>(of.grad, at, count, g);
  load_first<WHOLE>(of.m, at, count, m);
  load_first<WHOLE>(of.v, at, count, v);
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    if (k.coupled != 0.0f) {
      g[i] = __fadd_rn(g[i], __fmul_rn(k.coupled, p[i]));
    }
    update_moments(g[i], k, m[i], v[i]);
    p[i] = moved(p[i], m[i], v[i], k);
  }
  store_first<WHOLE>(of.new_param, at, count, p);
  store_first<WHOLE>(of.new_m, at, count, m);
  store_first<WHOLE>(of.new_v, at, count, v);
}

template <typename P, typename G>
__device__ inline void adam_step(
    const AdamArrays<P, G> &of, const Chunk &chunk, const AdamConstants &k) {
  const bool aligned = of.aligned();
  const Index end = chunk.start + ADAM_CHUNK;
  const Index stop = end < chunk.n ? end : chunk.n;
  for (Index at = chunk.start + OCTET * threadIdx.x; at < stop; at += OCTET * blockDim.x) {
    if (aligned && at + OCTET <= stop) {
      adam_octet<true>(of, at, OCTET, k);
    } else {
      adam_octet<false>(of, at, at + OCTET <= stop ? OCTET : (int)(stop - at), k);
    }
  }
}

// ---- moments in 8 bits --------------------------------------------------------------------------
//
// Decode (S7), step, move p by the new moments as they are, code them (S4, S5).
//
// Launch: 256 threads, four blocks of them to a multiprocessor by their registers; a block for each
// STRETCHES stretches of each tensor, which share the tables that it fills first. A stretch is a
// block of moments, or 256 elements where blocks are shorter. A warp takes it alone, an octet a lane
// and 256 elements a pass: the largest moments are found by shuffles, and where there is one pass
// the moments stay in registers until they are coded; else they are computed again. Block sizes are
// the powers of two from 32 to 4096, passed as their logarithm.
// Bytes for each element: 4, 16 / blocksize, 2 sizeof(P) and sizeof(G), which is 10.06 for bfloat16
// and 16.06 for float32 in blocks of 256.

constexpr int STRETCHES = 64;

template <typename P, typename G>
struct Adam8bitArrays {
  const P *param;
  const G *grad;
  const Byte *m_codes;
  const float *m_absmax;
  const Byte *v_codes;
  const float *v_absmax;
  P *new_param;
  Byte *new_m_codes;
  float *new_m_absmax;
  Byte *new_v_codes;
  float *new_v_absmax;

  __device__ bool aligned() const {
    return is_aligned(param, 16) && is_aligned(grad, 16) && is_aligned(new_param, 16) &&
           is_aligned(m_codes, 8) && is_aligned(v_codes, 8) && is_aligned(new_m_codes, 8) &&
           is_aligned(new_v_codes, 8);
  }
};

// A map in shared memory: its levels [256], and what its codes are made by.
struct Map {
  const float *levels;
  Coder<8> by;
};

// A map of `count` levels, at most 256; all threads arrive.
__device__ inline Map make_map(
    const float *levels, int count, float *table, float *thresholds, Bin *bins) {
  fill_levels<8>(levels, count, table);
  return Map{table, make_coder<8>(levels, count, 0, thresholds, bins)};
}

// Decode the octet of moments at element `at`; 0 stands behind the first `count`.
template <bool WHOLE>
__device__ inline void decode_first(
    const Byte *codes, const Map &map, float absmax, Index at, int count, float octet[OCTET]) {
  Address bytes = 0;  // byte i is bits 8i and up
  if constexpr (WHOLE) {
    bytes = *(const Address *)(codes + at);
  } else {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      bytes |= i < count ? (Address)codes[at + i] << 8 * i : 0;
    }
  }
#pragma unroll
  for (int i = 0; i < OCTET; ++i) {
    octet[i] = i < count ? __fmul_rn(map.levels[bytes >> 8 * i & 255], absmax) : 0.0f;
  }
}

// Code an octet (S5) and store the first `count` codes at element `at`.
__device__ inline void encode_first(
    const float octet[OCTET], const Map &map, float absmax, bool strange, bool whole, Index at,
    int count, Byte *codes) {
  const Address bytes = encode(map.by, octet, absmax, strange);
  if (whole) {
    *(Address *)(codes + at) = bytes;
  } else {
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      if (i < count) {
        codes[at + i] = (Byte)(bytes >> 8 * i);
      }
    }
  }
}

// A step of one tensor, as every warp sees it.
template <typename P, typename G>
struct Adam8bit {
  Adam8bitArrays<P, G> of;
  Index n;
  int log_blocksize;
  Map m_map, v_map;
  AdamConstants k;

  // The new moments of the octet that begins at element `at`.
  template <bool WHOLE>
  __device__ void moments(Index at, int count, float m[OCTET], float v[OCTET]) const {
    const Index block = at >> log_blocksize;
    float g[OCTET];
    load_first<WHOLE>(of.grad, at, count, g);
    decode_first<WHOLE>(of.m_codes, m_map, of.m_absmax[block], at, count, m);
    decode_first<WHOLE>(of.v_codes, v_map, of.v_absmax[block], at, count, v);
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      update_moments(g[i], k, m[i], v[i]);
    }
  }

  // Move the parameters of an octet.
  template <bool WHOLE>
  __device__ void move(Index at, int count, const float m[OCTET], const float v[OCTET]) const {
    float p[OCTET];
    load_first<WHOLE>(of.param, at, count, p);
#pragma unroll
    for (int i = 0; i < OCTET; ++i) {
      p[i] = moved(p[i], m[i], v[i], k);
    }
    store_first<WHOLE>(of.new_param, at, count, p);
  }

  // How many elements of the octet at element `at` are there, of which one is.
  __device__ int count(Index at) const { return at + OCTET <= n ? OCTET : (int)(n - at); }

  // The elements of a stretch.
  template <bool LONG>
  __device__ Index span() const {
    return LONG ? (Index)1 << log_blocksize : WARP_SPAN;
  }

  // A stretch, by one warp, whose lanes arrive together. LONG: in passes.
  template <bool LONG>
  __device__ void stretch(Index start, bool aligned) const {
    const Index own = start + threadIdx.x % WARP * OCTET, end = own + span<LONG>();
    const int lanes = LONG ? WARP : 1 << (log_blocksize - 3);  // of one block
    float m[OCTET], v[OCTET], m_absmax = 0.0f, v_absmax = 0.0f;
    bool strange = false;
    for (Index at = own; at < n && at < end; at += WARP_SPAN) {
      if (aligned && count(at) == OCTET) {
        moments<true>(at, OCTET, m, v);
        move<true>(at, OCTET, m, v);
      } else {
        moments<false>(at, count(at), m, v);
        move<false>(at, count(at), m, v);
      }
      m_absmax = largest_of(m, m_absmax, strange);
      v_absmax = largest_of(v, v_absmax, strange);
    }
    m_absmax = group_max(m_absmax, lanes);
    v_absmax = group_max(v_absmax, lanes);
    for (Index at = own; at < n && at < end; at += WARP_SPAN) {
      const bool whole = aligned && count(at) == OCTET;
      if (LONG && whole) {
        moments<true>(at, OCTET, m, v);
      } else if (LONG) {
        moments<false>(at, count(at), m, v);
      }
      encode_first(m, m_map, m_absmax, strange, whole, at, count(at), of.new_m_codes);
      encode_first(v, v_map, v_absmax, strange, whole, at, count(at), of.new_v_codes);
    }
    __syncwarp();  // no lane needs the old scales any more
    if (threadIdx.x % lanes == 0 && own < n) {
      of.new_m_absmax[own >> log_blocksize] = m_absmax;
      of.new_v_absmax[own >> log_blocksize] = v_absmax;
    }
  }

  template <bool LONG>
  __device__ void chunk(Index start) const {
    const bool aligned = of.aligned();
    for (int i = threadIdx.x / WARP; i < STRETCHES; i += blockDim.x / WARP) {
      if (start + i * span<LONG>() < n) {  // all lanes of a warp agree
        stretch<LONG>(start + i * span<LONG>(), aligned);
      }
    }
  }
};

// ---- kernels ------------------------------------------------------------------------------------

#define FOR_EACH_PARAM_AND_GRAD(make)          \
  make(float, float32, float, float32)         \
  make(Float16, float16, Float16, float16)     \
  make(Float16, float16, float, float32)       \
  make(BFloat16, bfloat16, BFloat16, bfloat16) \
  make(BFloat16, bfloat16, float, float32)

#define TENSORS                                                                                 \
  const Address *addresses, const int *owners, const Index *first_chunks, const Index *sizes
#define CONSTANTS                                                                               \
  float b1, float one_minus_b1, float b2, float one_minus_b2, float c1, float c2, float lr,     \
      float eps, float coupled, float kept
#define GATHERED_CONSTANTS \
  AdamConstants { b1, one_minus_b1, b2, one_minus_b2, c1, c2, lr, eps, coupled, kept }

// addresses [tensors, 7]: param, grad, m, v, and the new param, m, v.
#define ADAM_STEP(P, param, G, grad)                                                            \
  extern "C" __global__ void adam_step_##param##_##grad(TENSORS, CONSTANTS) {                   \
    const Chunk chunk = own_chunk(owners, first_chunks, sizes, ADAM_CHUNK);                     \
    const AdamArrays<P, G> of = ((const AdamArrays<P, G> *)addresses)[chunk.tensor];            \
    adam_step(of, chunk, GATHERED_CONSTANTS);                                                   \
  }
FOR_EACH_PARAM_AND_GRAD(ADAM_STEP)

// addresses [tensors, 11]: param, grad, codes and scales of m and of v, then the new ones of all
// but grad; m_levels [m_count], v_levels [v_count]: at most 256, in order.
#define ADAM_STEP_8BIT(P, param, G, grad)                                                       \
  extern "C" __global__ void __launch_bounds__(256, 4) adam_step_8bit_##param##_##grad(         \
      TENSORS, const float *m_levels, int m_count, const float *v_levels, int v_count,          \
      int log_blocksize, CONSTANTS) {                                                           \
    SHARED(float, m_table, 256);                                                                \
    SHARED(float, m_thresholds, 256);                                                           \
    SHARED(Bin, m_bins, BINS<8>);                                                               \
    SHARED(float, v_table, 256);                                                                \
    SHARED(float, v_thresholds, 256);                                                           \
    SHARED(Bin, v_bins, BINS<8>);                                                               \
    const Map m_map = make_map(m_levels, m_count, m_table, m_thresholds, m_bins);               \
    const Map v_map = make_map(v_levels, v_count, v_table, v_thresholds, v_bins);               \
    const Index length = (Index)STRETCHES << (log_blocksize < 8 ? 8 : log_blocksize);           \
    const Chunk chunk = own_chunk(owners, first_chunks, sizes, length);                         \
    const Adam8bitArrays<P, G> of = ((const Adam8bitArrays<P, G> *)addresses)[chunk.tensor];    \
    const Adam8bit<P, G> step{of, chunk.n, log_blocksize, m_map, v_map, GATHERED_CONSTANTS};    \
    if (log_blocksize <= 8) {                                                                   \
      step.template chunk<false>(chunk.start);                                                  \
    } else {                                                                                    \
      step.template chunk<true>(chunk.start);                                                   \
    }                                                                                           \
  }
FOR_EACH_PARAM_AND_GRAD(ADAM_STEP_8BIT)
