// The three functions of the stand-in that CUDA 13 has changed, by the signatures of either version.
#include "cuda_words.h"

typedef void *cudaStream_t;

#if CUDART_VERSION >= 13000

enum { cudaMemLocationTypeDevice = 1, cudaMemLocationTypeHost = 2 };

struct cudaMemLocation {
  int type, id;
};

// -1 is the host for CUDA 12 only: no device has that number.
static int place_of(cudaMemLocation location) {
  if (location.type == cudaMemLocationTypeHost) return cudaCpuDeviceId;
  return location.type == cudaMemLocationTypeDevice && location.id >= 0 ? location.id : -2;
}

EXPORT cudaError_t cudaMemPrefetchAsync(const void *pointer, size_t bytes, cudaMemLocation location,
                                        unsigned flags, cudaStream_t) {
  return flags ? cudaErrorInvalidValue : standinPrefetch(pointer, bytes, place_of(location));
}

EXPORT cudaError_t cudaMemAdvise(const void *pointer, size_t bytes, int advice,
                                 cudaMemLocation location) {
  return standinAdvise(pointer, bytes, advice, place_of(location));
}

#else

EXPORT cudaError_t cudaMemPrefetchAsync(const void *pointer, size_t bytes, int device,
                                        cudaStream_t) {
  return standinPrefetch(pointer, bytes, device);
}

EXPORT cudaError_t cudaMemAdvise(const void *pointer, size_t bytes, int advice, int device) {
  return standinAdvise(pointer, bytes, advice, device);
}

#endif

EXPORT cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
