// CUDA's execution model on one thread of the host, as far as the kernels of this package use it.
//
// Each thread of a block is a fiber with a stack of its own (ucontext to start it, _setjmp and _longjmp to switch, which cost no
// system call). Blocks run one after the other. A fiber runs until it ends, or until it waits: at the block's barrier, or in a
// shuffle for the lanes of its mask. The order in which fibers get their turn is the caller's: forward, reverse, or shuffled by a
// seed, anew for each block. In the first two a warp that has shuffled goes on at once, ahead of all others as far as the next
// barrier; in the third all warps keep pace. A kernel whose result depends on the order has a race.
//
// What CUDA leaves undefined is an error here, with the block and the thread: a barrier that not all threads of the block reach, a
// shuffle under a mask without the caller or with a lane that never comes, and any touch of memory outside the buffers, whose
// guard pages raise SIGSEGV. What C++ leaves undefined, an access that is not aligned above all, raises SIGILL. Shared memory
// starts as NaN in each block, and a lane outside the mask gives NaN.
//
// Not covered: streams, copies, memory ordering between blocks, and atomics that race, since fibers never run at once.

#pragma once

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

namespace shim {

enum { FORWARD, REVERSE, SEEDED };
enum { READY, AT_BARRIER, IN_WARP, DONE };
const int LIMIT = 1024, WARP = 32, STACK = 1 << 15;
typedef unsigned long long word;

struct Index { unsigned x, y, z; };
struct Fiber {
    jmp_buf state;
    ucontext_t entry;
    char* stack;
    Index index;
    bool begun;
    int status, line;          // where it waits
    unsigned mask;             // of lanes, in a shuffle
    word given, seen[WARP];    // what it gave to the shuffle, and what all lanes gave
};

static Fiber fibers[LIMIT];
static Fiber* current;
static Index grid, block, in_grid;
static int threads;
static jmp_buf scheduler;
static sigjmp_buf escape;
static void (*run_kernel)(void**);
static void** arguments;
static char* message;
static const int MESSAGE = 400;
static void* volatile touched;

[[noreturn]] static void fail(const char* what) {
    int t = current ? (int)(current - fibers) : 0;
    snprintf(message, MESSAGE, "block (%u, %u, %u), thread %d: %s", in_grid.x, in_grid.y, in_grid.z, t, what);
    siglongjmp(escape, 1);
}

static void on_fault(int signal, siginfo_t* info, void*) {
    if (signal == SIGILL) fail("it makes an access that is not aligned, goes beyond an array or shifts too far");
    touched = info->si_addr;
    siglongjmp(escape, 2);
}

__attribute__((noinline)) static void wait(int status, int line) {
    current->status = status;
    current->line = line;
    if (!_setjmp(current->state)) _longjmp(scheduler, 1);
}

static void fiber_main() {
    for (;;) {
        run_kernel(arguments);
        wait(DONE, 0);
    }
}

__attribute__((noinline)) static void resume(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.state, 1);
    fiber.begun = true;
    getcontext(&fiber.entry);
    if (!fiber.stack) fiber.stack = (char*)malloc(STACK);
    fiber.entry.uc_stack.ss_sp = fiber.stack;
    fiber.entry.uc_stack.ss_size = STACK;
    fiber.entry.uc_link = nullptr;
    makecontext(&fiber.entry, fiber_main, 0);
    setcontext(&fiber.entry);
}

// The lanes that wait in a shuffle go on once every lane of the mask is there: whether they do.
static bool release_warp(Fiber* warp, int lanes, unsigned mask) {
    for (int lane = 0; lane < WARP; lane++)
        if (mask >> lane & 1)
            if (lane >= lanes || warp[lane].status != IN_WARP || warp[lane].mask != mask) return false;
    word gave[WARP];
    memset(gave, 0xff, sizeof gave);
    for (int lane = 0; lane < WARP; lane++)
        if (mask >> lane & 1) gave[lane] = warp[lane].given;
    for (int lane = 0; lane < WARP; lane++)
        if (mask >> lane & 1) {
            memcpy(warp[lane].seen, gave, sizeof gave);
            warp[lane].status = READY;
        }
    return true;
}

static const word* exchange(unsigned mask, word value) {
    if (!(mask >> (current - fibers) % WARP & 1)) fail("it shuffles under a mask without its own lane");
    current->mask = mask;
    current->given = value;
    wait(IN_WARP, 0);
    return current->seen;
}

static unsigned next_random(word& state) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 32);
}

static void arrange(int* places, int count, int order, word& state) {
    for (int k = 0; k < count; k++) places[k] = order == REVERSE ? count - 1 - k : k;
    if (order == SEEDED)
        for (int k = count - 1; k > 0; k--) {
            int other = next_random(state) % (k + 1), kept = places[k];
            places[k] = places[other];
            places[other] = kept;
        }
}

// All wait at the same barrier, or the kernel is at fault.
static void release_barrier() {
    Fiber* at = nullptr;
    for (int t = 0; t < threads; t++) {
        current = fibers + t;
        if (current->status == IN_WARP) fail("it waits in a shuffle for a lane of its mask that does not come");
        if (current->status == AT_BARRIER && !at) at = current;
    }
    for (int t = 0; t < threads; t++) {
        current = fibers + t;
        if (current->status == DONE) fail("it ended while others of its block wait at a barrier");
        if (current->line != at->line) fail("it waits at another barrier than others of its block");
        current->status = READY;
    }
}

static void run_block(int order, word& state, char* shared, size_t shared_size) {
    static int places[LIMIT];
    if (shared_size) memset(shared, 0xff, shared_size);
    arrange(places, threads, order, state);
    for (int t = 0; t < threads; t++) fibers[t].status = READY;
    for (int ended = 0; ended < threads;) {
        bool moved = false;
        for (int k = 0; k < threads; k++) {
            int t = places[k], first = t - t % WARP, end = first + WARP < threads ? first + WARP : threads;
            if (fibers[t].status != READY) continue;
            resume(fibers[t]);
            moved = true;
            ended += fibers[t].status == DONE;
            bool released = fibers[t].status == IN_WARP && release_warp(fibers + first, end - first, fibers[t].mask);
            if (released && order == FORWARD) k = first - 1;
            if (released && order == REVERSE) k = threads - end - 1;
        }
        if (!moved) release_barrier();
    }
}

static int launch(void** given, const unsigned* sizes, int order, word seed, char* said, void** at, char* shared, size_t size) {
    grid = {sizes[0], sizes[1], sizes[2]};
    block = {sizes[3], sizes[4], sizes[5]};
    threads = (int)(block.x * block.y * block.z);
    arguments = given;
    message = said;
    current = nullptr;
    struct sigaction act, segv, bus, ill;
    memset(&act, 0, sizeof act);
    act.sa_sigaction = on_fault;
    act.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &act, &segv);
    sigaction(SIGBUS, &act, &bus);
    sigaction(SIGILL, &act, &ill);
    int outcome = sigsetjmp(escape, 1);
    if (!outcome) {
        for (int t = 0; t < threads; t++)
            fibers[t].index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
        word state = seed * 0x9e3779b97f4a7c15ull + 1;
        long long blocks = (long long)grid.x * grid.y * grid.z;
        for (long long k = 0; k < blocks; k++) {
            long long b = order == REVERSE ? blocks - 1 - k : k;
            in_grid = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y)};
            run_block(order, state, shared, size);
        }
    } else {
        if (outcome == 2) {
            int t = current ? (int)(current - fibers) : 0;
            snprintf(said, MESSAGE, "block (%u, %u, %u), thread %d: ", in_grid.x, in_grid.y, in_grid.z, t);
            *at = touched;
        }
        for (int t = 0; t < LIMIT; t++) fibers[t].begun = false;
    }
    sigaction(SIGSEGV, &segv, nullptr);
    sigaction(SIGBUS, &bus, nullptr);
    sigaction(SIGILL, &ill, nullptr);
    return outcome;
}

template <class T> static word as_word(T value) {
    static_assert(sizeof(T) <= sizeof(word), "a shuffle carries 8 bytes at most");
    word result = 0;
    memcpy(&result, &value, sizeof value);
    return result;
}

template <class T> static T lane_of(unsigned mask, T value, int source, int width) {
    const word* seen = exchange(mask, as_word(value));
    int lane = (int)(current - fibers) % WARP, segment = lane / width * width;
    T result;
    memcpy(&result, seen + (source >= segment && source < segment + width ? source : lane), sizeof result);
    return result;
}

static int lane() { return (int)(current - fibers) % WARP; }

// A kernel is called with a pointer to each argument, as cuLaunchKernel has it.
template <size_t... I> struct Places {};
template <size_t N, size_t... I> struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I> struct Count<0, I...> { typedef Places<I...> type; };
template <class... A, size_t... I> static void apply(void (*kernel)(A...), void** given, Places<I...>) {
    kernel(*(A*)given[I]...);
}
template <class... A> static void call(void (*kernel)(A...), void** given) {
    apply(kernel, given, typename Count<sizeof...(A)>::type());
}

}  // namespace shim

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("refpeft_shared")))
#define threadIdx (shim::current->index)
#define blockIdx (shim::in_grid)
#define blockDim (shim::block)
#define gridDim (shim::grid)
#define __syncthreads() shim::wait(shim::AT_BARRIER, __LINE__)
#define __syncwarp(...) ((void)shim::exchange(shim::mask_or_all(__VA_ARGS__), 0))

namespace shim {
static inline unsigned mask_or_all(unsigned mask = 0xffffffff) { return mask; }
}  // namespace shim

template <class T> static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return shim::lane_of(mask, value, shim::lane() / width * width + source % width, width);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    return shim::lane_of(mask, value, shim::lane() ^ bits, width);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    return shim::lane_of(mask, value, shim::lane() + (int)distance, width);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
    return shim::lane_of(mask, value, shim::lane() - (int)distance, width);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const shim::word* seen = shim::exchange(mask, predicate != 0);
    unsigned result = 0;
    for (int lane = 0; lane < shim::WARP; lane++)
        if (mask >> lane & 1) result |= (unsigned)seen[lane] << lane;
    return result;
}

template <class T> static inline T atomicAdd(T* at, T value) { T old = *at; *at = old + value; return old; }
template <class T> static inline T atomicMax(T* at, T value) { T old = *at; if (value > old) *at = value; return old; }
template <class T> static inline T atomicMin(T* at, T value) { T old = *at; if (value < old) *at = value; return old; }

static inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, sizeof x); return x; }
static inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, sizeof bits); return bits; }
