// PyTorch's own CUDA caching allocator, run without a GPU.
//
// Links against the installed libc10_cuda and takes the place of the CUDA runtime below it: what
// would ask the driver for memory only counts. The executable's symbols go before those of
// libcudart, so the allocator calls the functions here.
//
// Usage: allocator_parity DEVICE_BYTES < events
//   a BLOCK SIZE STREAM   allocate
//   f BLOCK               free
//   e                     empty the cache
// After each a and f it prints allocated and reserved bytes, cudaMallocs and cudaFrees so far; "oom"
// ends the output.

#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

namespace {

constexpr size_t kAlignment = size_t{2} << 20;

size_t device_bytes = 0;
size_t used_bytes = 0;
size_t next_address = 0x7F0000000000;
unsigned long long next_handle = 1;
std::unordered_map<void*, size_t> segments;
std::unordered_map<unsigned long long, size_t> pages;

size_t reserve_addresses(size_t size) {
  const size_t address = next_address;
  next_address += (size + kAlignment - 1) / kAlignment * kAlignment;
  return address;
}

CUresult do_nothing() {
  return CUDA_SUCCESS;
}

CUresult address_reserve(CUdeviceptr* address, size_t size, size_t, CUdeviceptr, unsigned long long) {
  *address = reserve_addresses(size);
  return CUDA_SUCCESS;
}

CUresult create_page(
    CUmemGenericAllocationHandle* handle, size_t size, const CUmemAllocationProp*, unsigned long long) {
  if (used_bytes + size > device_bytes) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
  used_bytes += size;
  *handle = next_handle++;
  pages[*handle] = size;
  return CUDA_SUCCESS;
}

CUresult release_page(CUmemGenericAllocationHandle handle) {
  used_bytes -= pages.at(handle);
  pages.erase(handle);
  return CUDA_SUCCESS;
}

CUresult get_attribute(int* value, CUdevice_attribute, CUdevice) {
  *value = 0;
  return CUDA_SUCCESS;
}

void* driver_function(const char* name) {
  if (!std::strcmp(name, "cuMemAddressReserve")) {
    return reinterpret_cast<void*>(address_reserve);
  }
  if (!std::strcmp(name, "cuMemCreate")) {
    return reinterpret_cast<void*>(create_page);
  }
  if (!std::strcmp(name, "cuMemRelease")) {
    return reinterpret_cast<void*>(release_page);
  }
  if (!std::strcmp(name, "cuDeviceGetAttribute")) {
    return reinterpret_cast<void*>(get_attribute);
  }
  return reinterpret_cast<void*>(do_nothing);
}

} // namespace

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  properties->totalGlobalMem = device_bytes;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t size) {
  if (used_bytes + size > device_bytes) {
    return cudaErrorMemoryAllocation;
  }
  used_bytes += size;
  *address = reinterpret_cast<void*>(reserve_addresses(size));
  segments[*address] = size;
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  if (address != nullptr) {
    used_bytes -= segments.at(address);
    segments.erase(address);
  }
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = device_bytes - used_bytes;
  *total_bytes = device_bytes;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t) {
  return "simulated";
}

const char* cudaGetErrorString(cudaError_t) {
  return "simulated";
}

cudaError_t cudaDeviceSynchronize() {
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned int, int) {
  *stream = reinterpret_cast<cudaStream_t>(size_t{0x1000});
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned int, unsigned long long, cudaDriverEntryPointQueryResult* status) {
  *function = driver_function(name);
  if (status != nullptr) {
    *status = cudaDriverEntryPointSuccess;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPoint(
    const char* name, void** function, unsigned long long flags, cudaDriverEntryPointQueryResult* status) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, status);
}

} // extern "C"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s DEVICE_BYTES < events\n", argv[0]);
    return 2;
  }
  device_bytes = std::strtoull(argv[1], nullptr, 10);
  namespace allocator = c10::cuda::CUDACachingAllocator;
  allocator::init(1);
  auto* cuda = allocator::get();
  std::unordered_map<long long, void*> live;
  char action = 0;
  while (std::scanf(" %c", &action) == 1) {
    long long block = 0;
    long long size = 0;
    long long stream = 0;
    if (action == 'a' && std::scanf("%lld %lld %lld", &block, &size, &stream) == 3) {
      try {
        live[block] = cuda->raw_alloc_with_stream(size, reinterpret_cast<cudaStream_t>(stream));
      } catch (const c10::OutOfMemoryError&) {
        std::puts("oom");
        return 0;
      }
    } else if (action == 'f' && std::scanf("%lld", &block) == 1) {
      cuda->raw_delete(live.at(block));
      live.erase(block);
    } else if (action == 'e') {
      cuda->emptyCache();
      continue;
    } else {
      return 2;
    }
    const auto stats = cuda->getDeviceStats(0);
    std::printf(
        "%lld %lld %lld %lld\n",
        static_cast<long long>(stats.allocated_bytes[0].current),
        static_cast<long long>(stats.reserved_bytes[0].current),
        static_cast<long long>(stats.num_device_alloc),
        static_cast<long long>(stats.num_device_free));
  }
  return 0;
}
