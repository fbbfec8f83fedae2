// CUDA C for g++: what stands before the kernel text, so that a CPU can run it.
//
// The built-in variables, the intrinsics and SHARED, as the text uses them and no more: a name that
// is missing here is a compile error, and never a kernel that passed by accident. What a block does
// when its threads wait for each other is in scheduler.cpp, behind the few functions shim_*.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>

// ---- words of the language ----------------------------------------------------------------------

#define __global__
#define __device__
#define __launch_bounds__(...)
#define SHIM_EXPORT __attribute__((visibility("default")))

struct ShimDim {
  unsigned x, y, z;
};

// Set at every switch to another thread; one launch runs at a time.
extern ShimDim threadIdx, blockIdx, blockDim, gridDim;

// ---- shared memory ------------------------------------------------------------------------------

// Where a shared array of the text lies in the running block. Zero until the first block.
struct ShimShared {
  uint64_t block;
  void *address;
};

void *shim_shared(ShimShared &shared, size_t bytes, size_t alignment, const char *file, int line);

// A reference to an array of n elements, so that an index beyond them is seen.
#define SHARED(type, name, n)           \
  static ShimShared shim_##name = {};   \
  type(&name)[n] = *(type(*)[n])shim_shared(shim_##name, sizeof(type[n]), alignof(type), __FILE__, __LINE__)

// ---- threads that wait for each other -----------------------------------------------------------

#define SHIM_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

enum class ShimMeeting { BARRIER, SHUFFLE, SYNCWARP };

void shim_barrier(const char *file, int line);
// What the lane `source` gave as `value`.
uint64_t shim_meet(ShimMeeting kind, unsigned mask, uint64_t value, int source, const char *file, int line);

inline int shim_lane() { return threadIdx.x & 31; }

inline void __syncthreads(SHIM_SITE) { shim_barrier(file, line); }

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, SHIM_SITE) {
  shim_meet(ShimMeeting::SYNCWARP, mask, 0, shim_lane(), file, line);
}

// Lanes form groups of `width`. Groups before one's own may be read, groups after it not: a lane that
// would read one reads itself.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SHIM_SITE) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle carries 8 bytes");
  const int lane = shim_lane(), other = lane ^ lanes;
  const int source = other < (lane & ~(width - 1)) + width ? other : lane;
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shim_meet(ShimMeeting::SHUFFLE, mask, bits, source, file, line);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

// ---- arithmetic ---------------------------------------------------------------------------------

// -ffp-contract=off: each operator rounds once, as the intrinsics promise.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __double2float_rn(double a) { return (float)a; }

template <typename To, typename From>
inline To shim_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}

inline unsigned __float_as_uint(float a) { return shim_bits<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return shim_bits<float>(a); }
// Four of the eight bytes of a and b, b's on top: digit i of the selector names byte i.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = (uint64_t)b << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  }
  return result;
}

inline int __float_as_int(float a) { return shim_bits<int>(a); }
inline float __int_as_float(int a) { return shim_bits<float>(a); }

// To nearest, ties to even; where -mf16c is given they are one instruction.
inline float shim_half_to_float(unsigned short bits) { return (float)shim_bits<_Float16>(bits); }
inline unsigned short shim_float_to_half(float value) {
  return shim_bits<unsigned short>((_Float16)value);
}

// ---- kernels as the runner finds them -----------------------------------------------------------

// One thread of a kernel: as in cuLaunchKernel, each argument is behind a pointer.
using ShimBody = void (*)(void *const *arguments);

struct ShimKernel {
  const char *name;
  const char *parameters;  // names, apart by commas
  const char *types;       // of them, as the C++ ABI writes them: "PKf,Ph,x,"
  ShimBody body;
};

template <typename... Parameters, size_t... I>
inline void shim_call(void (*kernel)(Parameters...), void *const *arguments, std::index_sequence<I...>) {
  kernel(*(std::remove_cv_t<Parameters> *)arguments[I]...);
}

template <typename... Parameters>
inline void shim_call(void (*kernel)(Parameters...), void *const *arguments) {
  shim_call(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

template <auto kernel>
void shim_body(void *const *arguments) {
  shim_call(kernel, arguments);
}

template <typename... Parameters>
const char *shim_types(void (*)(Parameters...)) {
  static const std::string types = ((std::string(typeid(Parameters).name()) + ",") + ... + "");
  return types.c_str();
}

#define SHIM_KERNEL(name, parameters) {#name, parameters, shim_types(name), shim_body<name>}
