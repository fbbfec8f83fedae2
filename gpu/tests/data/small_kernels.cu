// Small kernels that do what the real ones do: one thread a value, a sum over a block, a maximum
// over a warp, a vector load, numbers of 16 bits. Tests plant faults in them by replacing a line.

#ifndef SHARED
#define SHARED(type, name, n) __shared__ type name[n]
#endif

constexpr unsigned ALL_LANES = 0xFFFFFFFFu;
constexpr int THREADS = 64;

struct BFloat16 {
  unsigned short bits;
};

struct alignas(16) Words {
  unsigned word[4];
};

__device__ inline long long index() {
  return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

extern "C" __global__ void scale_add(float a, const float *x, float *y, long long n) {
  const long long i = index();
  if (i < n) {
    y[i] = __fadd_rn(__fmul_rn(a, x[i]), y[i]);
  }
}

extern "C" __global__ void sum_blocks(const float *x, float *sums, long long n) {
  SHARED(float, part, THREADS);
  const int thread = threadIdx.x;
  const long long i = index();
  part[thread] = i < n ? x[i] : 0.0f;
  __syncthreads();
  for (int distance = THREADS / 2; distance > 0; distance /= 2) {
    if (thread < distance) {
      part[thread] += part[thread + distance];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = part[0];
  }
}

extern "C" __global__ void max_of_warps(const float *x, float *maxima, long long n) {
  const long long i = index();
  float largest = i < n ? fabsf(x[i]) : 0.0f;
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, distance));
  }
  if (threadIdx.x % 32 == 0) {
    maxima[i / 32] = largest;
  }
}

// Each half of a warp gets the other's values, through memory that only the warp uses.
extern "C" __global__ void swap_halves(const float *x, float *out) {
  SHARED(float, halves, THREADS);
  const int thread = threadIdx.x;
  halves[thread] = x[thread];
  __syncwarp();
  out[thread] = halves[thread ^ 16];
}

extern "C" __global__ void copy_words(const Words *from, Words *to, long long n) {
  const long long i = index();
  if (i < n) {
    to[i] = from[i];
  }
}

extern "C" __global__ void round_to_bfloat16(const float *x, BFloat16 *y, long long n) {
  const long long i = index();
  if (i < n) {
    const unsigned bits = __float_as_uint(x[i]);
    y[i].bits = (unsigned short)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
  }
}

extern "C" __global__ void through_half(const float *x, unsigned short *half, float *back) {
  const long long i = index();
  half[i] = shim_float_to_half(x[i]);
  back[i] = shim_half_to_float(half[i]);
}

extern "C" __global__ void add_tables(const unsigned long long *tables, float *sum, int n) {
  sum[threadIdx.x] = 0.0f;
  for (int i = 0; i < n; ++i) {
    const float *table = (const float *)tables[i];
    sum[threadIdx.x] = __fadd_rn(sum[threadIdx.x], table ? table[threadIdx.x] : 1.0f);
  }
}
