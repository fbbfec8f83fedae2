// What the kernels share: types, conversions, a maximum over lanes, kernels for three types.
//
// Nothing is included. On a CPU a shim stands before this text: it defines SHARED, the built-in
// variables and intrinsics of CUDA, and the two conversions of float16.

#ifndef SHARED
#define SHARED(type, name, n) __shared__ type name[n]
#endif

using Index = long long;             // of an element: a tensor may have more than 2^31
using Address = unsigned long long;  // of an array, in a table of many
using Byte = unsigned char;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xFFFFFFFFu;

// ---- the three float types, by their bits -------------------------------------------------------

struct Float16 {
  unsigned short bits;
};

struct BFloat16 {
  unsigned short bits;
};

__device__ inline float to_float(float value) { return value; }

__device__ inline float to_float(BFloat16 value) {
  return __uint_as_float((unsigned)value.bits << 16);
}

__device__ inline float to_float(Float16 value) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  return shim_half_to_float(value.bits);
#endif
}

// Widen both halves of a word. Registers of 16 bits are halves of one of 32, which shifts hide.
template <typename T>
__device__ inline void to_floats(unsigned word, float &low, float &high) {
  low = to_float(T{(unsigned short)(word & 0xFFFFu)});
  high = to_float(T{(unsigned short)(word >> 16)});
}

#ifdef __CUDA_ARCH__
template <>
__device__ inline void to_floats<Float16>(unsigned word, float &low, float &high) {
  Float16 first, second;
  asm("mov.b32 {%0, %1}, %2;" : "=h"(first.bits), "=h"(second.bits) : "r"(word));
  low = to_float(first);
  high = to_float(second);
}
#endif

// The one rounding to the output type: to nearest, ties to even; a NaN stays a NaN.
template <typename T>
__device__ inline T from_float(float value);

template <>
__device__ inline float from_float<float>(float value) {
  return value;
}

template <>
__device__ inline BFloat16 from_float<BFloat16>(float value) {
  const unsigned bits = __float_as_uint(value);
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  // Half an ulp, less one where the last kept bit is even: a tie then falls to the even side.
  const unsigned rounded = is_nan ? bits | 0x00400000u : bits + 0x7FFFu + (bits >> 16 & 1u);
  return BFloat16{(unsigned short)(rounded >> 16)};
}

template <>
__device__ inline Float16 from_float<Float16>(float value) {
#ifdef __CUDA_ARCH__
  Float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
#else
  return Float16{shim_float_to_half(value)};
#endif
}

// ---- 8 neighbours at once: an octet -------------------------------------------------------------

constexpr int OCTET = 8;  // 16 bytes of a 16-bit type, two times 16 bytes of float32

struct alignas(16) Words {
  unsigned word[4];
};

// A tensor may be a view that begins anywhere, and wide loads and stores need an aligned address.
__device__ inline bool is_aligned(const void *array, int bytes) {
  return ((Address)array & (Address)(bytes - 1)) == 0;
}

// An octet in memory is reached by its own number. An element's number has low bits that are known
// to be 0: nvcc makes at + 1 into at | 1, no longer sees neighbours, and stores them one by one.
template <typename T>
struct Octet {
  T element[OCTET];
};

// Widen an octet; `from` is aligned to 16 bytes.
template <typename T>
__device__ inline void load8(const T *from, float values[OCTET]) {
  const Words words = *(const Words *)from;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to_floats<T>(words.word[i], values[2 * i], values[2 * i + 1]);
  }
}

template <>
__device__ inline void load8<float>(const float *from, float values[OCTET]) {
  const Words low = ((const Words *)from)[0], high = ((const Words *)from)[1];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = __uint_as_float(low.word[i]);
    values[4 + i] = __uint_as_float(high.word[i]);
  }
}

// Round an octet to T and store it; `to` is aligned to 16 bytes.
template <typename T>
__device__ inline void store8(T *to, const float values[OCTET]) {
  Words words;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned low = from_float<T>(values[2 * i]).bits;
    const unsigned high = from_float<T>(values[2 * i + 1]).bits;
    words.word[i] = high << 16 | low;
  }
  *(Words *)to = words;
}

template <>
__device__ inline void store8<float>(float *to, const float values[OCTET]) {
  Words low, high;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    low.word[i] = __float_as_uint(values[i]);
    high.word[i] = __float_as_uint(values[4 + i]);
  }
  ((Words *)to)[0] = low;
  ((Words *)to)[1] = high;
}

// The codes of an octet are BITS bytes, byte j as bits 8j and up. A 4-bit code of an element 2k is
// the high nibble (S6).
template <int BITS>
struct CodesOf;
template <>
struct CodesOf<4> {
  using Type = unsigned;
};
template <>
struct CodesOf<8> {
  using Type = Address;
};
template <int BITS>
using Codes = typename CodesOf<BITS>::Type;

// Where the code of element i begins.
template <int BITS>
__device__ constexpr int place_of(int i) {
  return BITS == 8 ? 8 * i : 4 * (i ^ 1);
}

// ---- lanes --------------------------------------------------------------------------------------

// The largest value of each group of `lanes` neighbouring lanes (a power of two, at most 32), in
// every lane of the group. Exact in any order. All 32 lanes must arrive. fmaxf drops a NaN.
__device__ inline float group_max(float value, int lanes) {
#pragma unroll
  for (int distance = 1; distance < WARP && distance < lanes; distance *= 2) {
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
  }
  return value;
}

__device__ inline float warp_max(float value) { return group_max(value, WARP); }

// ---- one kernel for each type -------------------------------------------------------------------

// make(T, name) defines one kernel; `name` is what the protocol calls the type.
#define FOR_EACH_FLOAT(make) \
  make(float, float32)       \
  make(Float16, float16)     \
  make(BFloat16, bfloat16)
