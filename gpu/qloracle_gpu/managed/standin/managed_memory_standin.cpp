// A stand-in for the CUDA runtime's managed memory, for machines without a GPU. It is a test
// double: it models what CUDA promises, and CUDA's own code is not in it.
//
// The CPU plays both processors. While a kernel runs (standinKernel), what touches memory is the
// device, else it is the host. The bytes of a page lie in one of two memories, the host's or the
// device's, and move by being copied; what is left behind becomes zeros. A program sees neither but
// a window of addresses. A page of it leads to the page's bytes once it was touched, and before it
// leads nowhere: the touch raises SIGSEGV, and the handler moves the page and opens it.
// Each time the other processor takes over, all pages are closed again, so that the order in which
// each kernel touches them is known: the one touched longest ago is evicted when the budget is full.
// The host's own pages are open to the host at once, since nobody asks for its order.
//
// An instruction may touch two pages where the device holds one, and would push out the one for the
// other for ever. The page that an instruction has pushed out and wants back is therefore left on
// the host and opened there until the kernel ends, as NVIDIA's driver does with pages that thrash.
//
// A system call does not raise SIGSEGV: given a closed page it fails with EFAULT. A child by fork
// does not have the pages. CUDART_VERSION says which signatures the library has, CUDA 12's or 13's.

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

// The words of the CUDA runtime, with CUDA's numbers.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotSupported = 801,
};
typedef void *cudaStream_t;
enum { cudaCpuDeviceId = -1 };
enum { cudaDevAttrManagedMemory = 83, cudaDevAttrConcurrentManagedAccess = 89 };
enum { SetReadMostly = 1, SetPreferredLocation = 3, UnsetPreferredLocation = 4, UnsetAccessedBy = 6 };

struct StandinCounters {
  uint64_t faults, prefetched, evictions, host_faults, host_prefetched, remote;  // pages
  uint64_t bytes_to_device, bytes_to_host;
};

namespace {

constexpr unsigned char FRESH = 0xFF;  // what nobody has written reads as NaN
constexpr int NOWHERE = -1;
enum Side { HOST, DEVICE };

struct Page {
  Side place = HOST;
  uint64_t touched = 0;     // when, counted in touches of all pages; 0: never
  uint64_t evicted_by = 0;  // the state of the instruction that pushed it out; 0: none
};

struct Allocation {
  char *window;    // what the program sees
  char *bytes[2];  // the pages in the host's memory, and behind them in the device's
  size_t size;     // of the window: whole pages
  int device;
  int preferred;  // a side or NOWHERE
  std::vector<Page> pages;
};

struct Device {
  size_t capacity, page_bytes, resident = 0;  // bytes; a capacity of 0: no limit
  int managed = 1, concurrent = 1;
  int kernels = 0, host_turns = 0;
  bool removed = false;
  StandinCounters counters = {};
  Side runs() const { return kernels > 0 && host_turns == 0 ? DEVICE : HOST; }
};

// Never destroyed: at the end of a process some thread may still touch a page.
std::vector<Device> &devices = *new std::vector<Device>{{0, 65536}};
std::vector<Allocation *> &allocations = *new std::vector<Allocation *>;
uint64_t touches;
pid_t owner;
struct sigaction previous;
thread_local int current __attribute__((tls_model("initial-exec")));
// whether this thread is in the handler that was there before ours
thread_local int passing __attribute__((tls_model("initial-exec")));
std::atomic_flag busy = ATOMIC_FLAG_INIT;

// All that is above is changed under this lock, by functions that touch no window: so a thread that
// holds it does not come to the handler.
struct Lock {
  Lock() {
    while (busy.test_and_set(std::memory_order_acquire)) sched_yield();
  }
  ~Lock() { busy.clear(std::memory_order_release); }
};

// Every call begins so. A child by fork has neither the pages nor those who might hold the lock.
#define BEGIN_CALL                                                     \
  if (owner && getpid() != owner) return cudaErrorInitializationError; \
  Lock lock

[[noreturn]] void give_up(const char *what) {
  (void)!write(2, what, strlen(what));
  abort();
}

// ---- pages --------------------------------------------------------------------------------------

void close_pages(const Allocation &a, size_t first, size_t bytes) {
  int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(a.window + first, bytes, PROT_NONE, how, -1, 0) == MAP_FAILED)
    give_up("CUDA stand-in: a page could not be closed\n");
}

// Let pages of the window, which are all on one side, lead to their bytes; mremap makes a second
// mapping of a first one whose length it is told is 0.
void open_pages(const Allocation &a, size_t i, size_t count = 1) {
  size_t size = devices[a.device].page_bytes;
  char *from = a.bytes[a.pages[i].place] + i * size, *at = a.window + i * size;
  if (mremap(from, 0, count * size, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED)
    give_up("CUDA stand-in: a page could not be opened (see vm.max_map_count)\n");
}

// Close all pages but those of the host while it runs.
void begin_turn(const Allocation &a) {
  close_pages(a, 0, a.size);
  size_t end = devices[a.device].runs() == HOST ? a.pages.size() : 0;
  for (size_t i = 0, count; i < end; i += count) {
    count = 1;
    while (i + count < end && a.pages[i + count].place == a.pages[i].place) ++count;
    if (a.pages[i].place == HOST) open_pages(a, i, count);
  }
}

void move(Allocation &a, size_t i, Side to) {
  Device &device = devices[a.device];
  size_t size = device.page_bytes;
  Page &page = a.pages[i];
  close_pages(a, i * size, size);
  char *from = a.bytes[page.place] + i * size;
  memcpy(a.bytes[to] + i * size, from, size);
  madvise(from, size, MADV_REMOVE);
  page.place = to;
  page.evicted_by = 0;
  if (to == DEVICE) {
    device.resident += size;
    device.counters.bytes_to_device += size;
  } else {
    device.resident -= size;
    device.counters.bytes_to_host += size;
    if (device.runs() == HOST) open_pages(a, i);
  }
}

void evict_oldest(int number, uint64_t cause) {
  Allocation *of = nullptr;
  size_t oldest = 0;
  for (Allocation *a : allocations)
    for (size_t i = 0; a->device == number && i < a->pages.size(); ++i)
      if (a->pages[i].place == DEVICE && (!of || a->pages[i].touched < of->pages[oldest].touched))
        of = a, oldest = i;
  if (!of) give_up("CUDA stand-in: the device is full, but holds no page\n");
  move(*of, oldest, HOST);
  of->pages[oldest].evicted_by = cause;
  ++devices[number].counters.evictions;
}

void bring(Allocation &a, size_t i, uint64_t cause) {
  const Device &device = devices[a.device];
  while (device.capacity && device.resident + device.page_bytes > device.capacity)
    evict_oldest(a.device, cause);
  move(a, i, DEVICE);
}

// Serve a touch of a page by whoever runs; `cause` is the state of the instruction.
void touch(Allocation &a, size_t i, uint64_t cause) {
  Device &device = devices[a.device];
  Page &page = a.pages[i];
  Side side = device.runs();
  if (side == DEVICE && page.place == HOST) {
    if (a.preferred == HOST || page.evicted_by == cause) {
      ++device.counters.remote;
    } else {
      ++device.counters.faults;
      bring(a, i, cause);
    }
  } else if (side == HOST && page.place == DEVICE) {
    ++device.counters.host_faults;
    move(a, i, HOST);
  }
  page.touched = ++touches;
  open_pages(a, i);
}

Allocation *find(const char *address) {
  for (Allocation *a : allocations)
    if (address >= a->window && address < a->window + a->size) return a;
  return nullptr;
}

// ---- the handler --------------------------------------------------------------------------------

// Of the registers that addresses are made of: a thread that faults twice with the same ones has
// not got on in between.
uint64_t state(const ucontext_t *context) {
  uint64_t hash = 14695981039346656037u;
  auto add = [&](uint64_t word) { hash = (hash ^ word) * 1099511628211u; };
#if defined(__x86_64__)
  for (int i = 0; i <= REG_RIP; ++i) add(context->uc_mcontext.gregs[i]);
#elif defined(__aarch64__)
  for (uint64_t word : context->uc_mcontext.regs) add(word);
  add(context->uc_mcontext.sp);
  add(context->uc_mcontext.pc);
#else
#error "the stand-in knows the registers of x86-64 and of aarch64"
#endif
  return hash | 1;
}

void crash() {
  struct sigaction plain = {};
  plain.sa_handler = SIG_DFL;
  sigaction(SIGSEGV, &plain, nullptr);  // the instruction faults again when we return
}

// A fault that is not ours goes to the handler that was there before; a second one meanwhile ends
// the process.
void pass_on(int signal, siginfo_t *info, void *context) {
  bool sent = info->si_code <= 0;  // by kill or raise: no instruction will fault again
  bool nobody = !(previous.sa_flags & SA_SIGINFO) &&
                (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN);
  if (nobody || passing++) {
    crash();
    if (sent) raise(signal);
  } else if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else {
    previous.sa_handler(signal);
  }
  passing = 0;
}

void on_fault(int signal, siginfo_t *info, void *context) {
  int kept = errno;
  bool ours = false;
  if (info->si_code > 0 && getpid() == owner) {
    Lock lock;
    char *address = (char *)info->si_addr;
    if (Allocation *a = find(address)) {
      touch(*a, (address - a->window) / devices[a->device].page_bytes, state((ucontext_t *)context));
      ours = true;
    }
  }
  if (!ours) pass_on(signal, info, context);
  errno = kept;
}

// Put our handler before the one that is there, unless that is ours. A handler that comes later
// (faulthandler.enable) would take our faults for crashes; so this is done whenever work begins.
void install() {
  struct sigaction action = {}, there;
  sigaction(SIGSEGV, nullptr, &there);
  if ((there.sa_flags & SA_SIGINFO) && there.sa_sigaction == on_fault) return;
  previous = there;
  owner = getpid();
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, nullptr);
}

// ---- calls --------------------------------------------------------------------------------------

bool known(int device) {
  return device >= 0 && device < (int)devices.size() && !devices[device].removed;
}

// The pages of a range; an error where it is not all in one allocation.
cudaError_t find_range(const void *pointer, size_t bytes, Allocation *&a, size_t &first,
                       size_t &last) {
  const char *begin = (const char *)pointer;
  a = find(begin);
  if (!a || !bytes || bytes > size_t(a->window + a->size - begin)) return cudaErrorInvalidValue;
  size_t size = devices[a->device].page_bytes;
  first = (begin - a->window) / size;
  last = (begin - a->window + bytes + size - 1) / size;
  return cudaSuccess;
}

template <class Change>
cudaError_t take_turns(int number, Change change) {
  BEGIN_CALL;
  if (!known(number)) return cudaErrorInvalidDevice;
  if (!allocations.empty()) install();
  Side before = devices[number].runs();
  change(devices[number]);
  for (Allocation *a : allocations)
    if (a->device == number && devices[number].runs() != before) begin_turn(*a);
  return cudaSuccess;
}

}  // namespace

// ---- the runtime's functions --------------------------------------------------------------------

EXPORT cudaError_t cudaMallocManaged(void **pointer, size_t bytes, unsigned flags) {
  if (!bytes || (flags != 1 && flags != 2)) return cudaErrorInvalidValue;
  if (bytes > SIZE_MAX / 4) return cudaErrorMemoryAllocation;
  BEGIN_CALL;
  if (!known(current)) return cudaErrorInvalidDevice;
  const Device &device = devices[current];
  if (!device.managed) return cudaErrorNotSupported;
  size_t pages = (bytes - 1) / device.page_bytes + 1, size = pages * device.page_bytes;
  int both = PROT_READ | PROT_WRITE, closed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *all = mmap(nullptr, 2 * size, both, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (all == MAP_FAILED) return cudaErrorMemoryAllocation;
  void *window = mmap(nullptr, size, PROT_NONE, closed, -1, 0);
  if (window == MAP_FAILED) {
    munmap(all, 2 * size);
    return cudaErrorMemoryAllocation;
  }
  install();
  madvise(all, 2 * size, MADV_DONTFORK);
  memset(all, FRESH, size);
  allocations.push_back(new Allocation{(char *)window, {(char *)all, (char *)all + size}, size,
                                       current, NOWHERE, std::vector<Page>(pages)});
  begin_turn(*allocations.back());
  *pointer = window;
  return cudaSuccess;
}

EXPORT cudaError_t cudaFree(void *pointer) {
  if (!pointer) return cudaSuccess;
  BEGIN_CALL;
  for (size_t n = 0; n < allocations.size(); ++n) {
    Allocation *a = allocations[n];
    if (a->window != pointer) continue;
    Device &device = devices[a->device];
    for (const Page &page : a->pages)
      if (page.place == DEVICE) device.resident -= device.page_bytes;
    munmap(a->window, a->size);
    munmap(a->bytes[HOST], 2 * a->size);
    allocations.erase(allocations.begin() + n);
    delete a;
    return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

// To a device by its number, or to cudaCpuDeviceId; any other number is an error.
static cudaError_t prefetch(const void *pointer, size_t bytes, int place) {
  BEGIN_CALL;
  Allocation *a;
  size_t first, last;
  if (place != cudaCpuDeviceId && !known(place)) return cudaErrorInvalidDevice;
  if (cudaError_t error = find_range(pointer, bytes, a, first, last)) return error;
  Device &device = devices[a->device];
  if (!device.concurrent || (place >= 0 && place != a->device)) return cudaErrorInvalidDevice;
  Side to = place == cudaCpuDeviceId ? HOST : DEVICE;
  if (to == DEVICE && device.capacity)  // of those that do not fit, the first come
    last = std::min(last, first + device.capacity / device.page_bytes);
  for (size_t i = first; i < last; ++i)  // first those that are there: they shall not be pushed out
    if (a->pages[i].place == to) a->pages[i].touched = ++touches;
  for (size_t i = first; i < last; ++i) {
    if (a->pages[i].place == to) continue;
    ++(to == DEVICE ? device.counters.prefetched : device.counters.host_prefetched);
    to == DEVICE ? bring(*a, i, 0) : move(*a, i, HOST);
    a->pages[i].touched = ++touches;
  }
  return cudaSuccess;
}

static cudaError_t advise(const void *pointer, size_t bytes, int advice, int place) {
  BEGIN_CALL;
  Allocation *a;
  size_t first, last;
  if (advice < SetReadMostly || advice > UnsetAccessedBy) return cudaErrorInvalidValue;
  if (cudaError_t error = find_range(pointer, bytes, a, first, last)) return error;
  bool located = advice == SetPreferredLocation || advice > UnsetPreferredLocation;
  if (located && (place != cudaCpuDeviceId && !known(place))) return cudaErrorInvalidDevice;
  if (located && !devices[a->device].concurrent) return cudaErrorInvalidDevice;
  if (advice == SetPreferredLocation) a->preferred = place == cudaCpuDeviceId ? HOST : DEVICE;
  if (advice == UnsetPreferredLocation) a->preferred = NOWHERE;
  return cudaSuccess;  // the others are hints, and nothing comes of them here
}

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
  return flags ? cudaErrorInvalidValue : prefetch(pointer, bytes, place_of(location));
}

EXPORT cudaError_t cudaMemAdvise(const void *pointer, size_t bytes, int advice,
                                 cudaMemLocation location) {
  return advise(pointer, bytes, advice, place_of(location));
}

#else

EXPORT cudaError_t cudaMemPrefetchAsync(const void *pointer, size_t bytes, int device,
                                        cudaStream_t) {
  return prefetch(pointer, bytes, device);
}

EXPORT cudaError_t cudaMemAdvise(const void *pointer, size_t bytes, int advice, int device) {
  return advise(pointer, bytes, advice, device);
}

#endif

EXPORT cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device) {
  BEGIN_CALL;
  if (!known(device)) return cudaErrorInvalidDevice;
  *value = attribute == cudaDevAttrManagedMemory             ? devices[device].managed
           : attribute == cudaDevAttrConcurrentManagedAccess ? devices[device].concurrent
                                                             : 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  BEGIN_CALL;
  if (!known(current)) return cudaErrorInvalidDevice;
  const Device &device = devices[current];
  *total = device.capacity ? device.capacity
                           : size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE));
  *free = *total - std::min(*total, device.resident);
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDeviceCount(int *count) {
  BEGIN_CALL;
  *count = (int)devices.size();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int *device) {
  *device = current;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
  BEGIN_CALL;
  if (!known(device)) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
EXPORT cudaError_t cudaGetLastError() { return cudaSuccess; }
EXPORT const char *cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError: return "cudaErrorInitializationError";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
  }
  return "unrecognized error code";
}

// ---- the stand-in's own -------------------------------------------------------------------------

// Another device of the machine, with a budget (0: none) in pages of so many bytes.
EXPORT cudaError_t standinAddDevice(size_t capacity, size_t page_bytes, int *device) {
  if (!page_bytes || page_bytes % sysconf(_SC_PAGESIZE)) return cudaErrorInvalidValue;
  if (capacity && capacity < page_bytes) return cudaErrorInvalidValue;
  BEGIN_CALL;
  size_t number = 1;
  while (number < devices.size() && !devices[number].removed) ++number;
  if (number == devices.size()) devices.emplace_back();
  devices[number] = Device{capacity, page_bytes};
  *device = (int)number;
  return cudaSuccess;
}

EXPORT cudaError_t standinRemoveDevice(int number) {
  BEGIN_CALL;
  if (number == 0 || !known(number)) return cudaErrorInvalidDevice;
  for (const Allocation *a : allocations)
    if (a->device == number) return cudaErrorInvalidValue;
  devices[number].removed = true;
  return cudaSuccess;
}

EXPORT cudaError_t standinSetCapacity(int number, size_t capacity) {
  BEGIN_CALL;
  if (!known(number)) return cudaErrorInvalidDevice;
  Device &device = devices[number];
  if (capacity < device.page_bytes) return cudaErrorInvalidValue;
  device.capacity = capacity;
  while (device.resident > capacity) evict_oldest(number, 0);
  return cudaSuccess;
}

EXPORT cudaError_t standinSetAttribute(int device, int attribute, int value) {
  BEGIN_CALL;
  if (!known(device)) return cudaErrorInvalidDevice;
  if (attribute == cudaDevAttrManagedMemory) devices[device].managed = value;
  else if (attribute == cudaDevAttrConcurrentManagedAccess) devices[device].concurrent = value;
  else return cudaErrorInvalidValue;
  return cudaSuccess;
}

// A kernel begins (1) or ends (-1): what touches memory in between is the device.
EXPORT cudaError_t standinKernel(int device, int change) {
  return take_turns(device, [=](Device &d) { d.kernels += change; });
}

// The host touches memory while a kernel runs, from (1) to (-1).
EXPORT cudaError_t standinHost(int device, int change) {
  return take_turns(device, [=](Device &d) { d.host_turns += change; });
}

// Forget an allocation's pages, on both sides; its addresses remain.
EXPORT cudaError_t standinDiscard(void *pointer) {
  BEGIN_CALL;
  Allocation *a = find((const char *)pointer);
  if (!a) return cudaErrorInvalidValue;
  Device &device = devices[a->device];
  for (Page &page : a->pages) {
    if (page.place == DEVICE) device.resident -= device.page_bytes;
    page = Page();
  }
  begin_turn(*a);
  madvise(a->bytes[DEVICE], a->size, MADV_REMOVE);
  memset(a->bytes[HOST], FRESH, a->size);
  return cudaSuccess;
}

EXPORT cudaError_t standinCounters(int device, StandinCounters *counters, size_t *resident,
                                   size_t *capacity) {
  BEGIN_CALL;
  if (!known(device)) return cudaErrorInvalidDevice;
  *counters = devices[device].counters;
  *resident = devices[device].resident;
  *capacity = devices[device].capacity;
  return cudaSuccess;
}
