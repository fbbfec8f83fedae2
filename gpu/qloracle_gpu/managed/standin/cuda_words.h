// The words of the CUDA runtime that the stand-in uses, with CUDA's numbers.
#pragma once

#include <stddef.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotSupported = 801,
};
enum { cudaCpuDeviceId = -1 };

// By a device's number or cudaCpuDeviceId; any other number is an error.
EXPORT cudaError_t standinPrefetch(const void *pointer, size_t bytes, int place);
EXPORT cudaError_t standinAdvise(const void *pointer, size_t bytes, int advice, int place);
