// Double quantization: the offset of the scales, their residuals coded, and both decoded (S8).
//
//     offset = mean of absmax
//     r      = RN(absmax - offset), coded like any other float32 in blocks of its own (S4, S5)
//     back:    RN(RN(level nested_absmax) + offset), no clamp
//
// The mean takes two launches and no atomics. Each thread adds every width-th scale in float64, a
// block of threads adds its threads' sums by halves, and the last launch does the same with the
// blocks' sums. The order depends on n only, through the grid, so a result never changes from call
// to call. An addition in float64 errs by 2^-53 of the sum, 2^29 times less than the rounding to
// float32 at the end, where S8 grants (n + 1) 2^-24. Sums of small integers are exact, and a sum of
// finite scales cannot overflow.
//
// Launch: 256 threads; of `mean_absmax` one block. Bytes for each scale: 4 for the mean, then
// 4 + 1 + 4 / blocksize for the codes.

constexpr int SUMMING = 256;  // threads that add

// Add the values that this block's threads own, and return the sum in thread 0. All threads arrive.
template <typename T>
__device__ inline double block_sum(const T *values, Index n, double *sums) {
  double own = 0.0;
  const Index width = (Index)gridDim.x * SUMMING;
  for (Index i = (Index)blockIdx.x * SUMMING + threadIdx.x; i < n; i += width) {
    own = __dadd_rn(own, (double)values[i]);
  }
  sums[threadIdx.x] = own;
  for (int half = SUMMING / 2; half > 0; half /= 2) {
    __syncthreads();
    if ((int)threadIdx.x < half) {
      sums[threadIdx.x] = __dadd_rn(sums[threadIdx.x], sums[threadIdx.x + half]);
    }
  }
  return sums[threadIdx.x];
}

// sums [gridDim.x]: what each block added up.
extern "C" __global__ void sum_absmax(const float *absmax, double *sums, Index n) {
  SHARED(double, parts, SUMMING);
  const double sum = block_sum(absmax, n, parts);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
  }
}

// One block; sums [count]; offset [1]: their sum over n, rounded once to float64, once to float32.
extern "C" __global__ void mean_absmax(const double *sums, Index count, float *offset, Index n) {
  SHARED(double, parts, SUMMING);
  const double sum = block_sum(sums, count, parts);
  if (threadIdx.x == 0) {
    offset[0] = __double2float_rn(__ddiv_rn(sum, (double)n));
  }
}

// levels [count]: 2 to 256, in order; offset [1]; codes [n]; nested_absmax [ceil(n / blocksize)].
extern "C" __global__ void quantize_absmax(
    const float *absmax, const float *offset, const float *levels, int count, Byte *codes,
    float *nested_absmax, Index n, int log_blocksize) {
  SHARED(float, thresholds, 256);
  SHARED(Bin, bins, BINS<8>);
  const Coder<8> by = make_coder<8>(levels, count, 0, thresholds, bins);
  quantize(absmax, offset, by, codes, nested_absmax, n, log_blocksize);
}

// The inverse: absmax [n].
extern "C" __global__ void dequantize_absmax(
    const Byte *codes, const float *nested_absmax, const float *offset, const float *levels,
    int count, float *absmax, Index n, int log_blocksize) {
  SHARED(float, table, 256);
  fill_levels<8>(levels, count, table);
  __syncthreads();
  dequantize<8>(codes, PlainScale{nested_absmax}, offset, table, absmax, n, log_blocksize);
}
