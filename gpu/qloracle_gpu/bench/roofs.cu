// What the memory of this card can do: reads and writes in a given mix, and next to no arithmetic.
//
// A kernel is measured against a roof with its own mix, since a bus that must turn around between
// reads and writes is slower than one that need not. Every thread reads READS words of 16 bytes and
// writes WRITES, a stream each, all streams coalesced.
//
// Launch: any grid of 256 threads, striding over the words of a stream; the best grid is the roof.
// Bytes: 16 words (READS + WRITES). roof_triad is a[i] = b[i] + s c[i] on float32.

struct alignas(16) Word {
  unsigned part[4];
};

template <int READS, int WRITES>
__device__ inline void roof(const Word *from, Word *to, long long words) {
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += step) {
    Word sum = {{0, 0, 0, 0}};
#pragma unroll
    for (int stream = 0; stream < READS; ++stream) {
      const Word word = from[stream * words + i];
#pragma unroll
      for (int part = 0; part < 4; ++part) sum.part[part] ^= word.part[part];
    }
#pragma unroll
    for (int stream = 0; stream < WRITES; ++stream) to[stream * words + i] = sum;
    // Without writes the words must be used all the same. The host fills them with zeros.
    if (WRITES == 0 && sum.part[0] == 0xFFFFFFFFu) to[0] = sum;
  }
}

#define ROOF(reads, writes)                                                     \
  extern "C" __global__ void roof_##reads##_##writes(const Word *from, Word *to, \
                                                     long long words) {         \
    roof<reads, writes>(from, to, words);                                       \
  }

ROOF(1, 0)  // a product: the packed weight is all there is
ROOF(1, 1)  // a copy
ROOF(1, 4)  // nested decode to 16 bits
ROOF(2, 7)  // decode to 16 bits
ROOF(7, 2)  // quantize from 16 bits
ROOF(4, 3)  // Adam
ROOF(3, 2)  // 8-bit Adam

extern "C" __global__ void roof_triad(const float *b, const float *c, float *a, float s,
                                      long long n) {
  const long long step = (long long)gridDim.x * blockDim.x;
  const float4 *b4 = (const float4 *)b, *c4 = (const float4 *)c;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n / 4; i += step) {
    const float4 x = b4[i], y = c4[i];
    ((float4 *)a)[i] = make_float4(x.x + s * y.x, x.y + s * y.y, x.z + s * y.z, x.w + s * y.w);
  }
}
