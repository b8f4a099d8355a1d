// Test-only: runs CUDA kernels on the host, so that the unmodified .cu sources are executed where there is no GPU.
//
// Blocks run one after the other, the threads of a block as fibers that change over at barriers and shuffles only, both
// in an order that `schedule` selects. Shared memory lies on the heap at its exact size, filled with NaN: what one
// thread reads before another wrote it is then seen, and an index beyond it is seen by AddressSanitizer. A barrier or
// shuffle that not all of its threads reach is an error. It cannot show speed, races between blocks, or what happens
// between launches; `int` overflow at sizes that no test reaches stays hidden as well.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED_ARRAY(type, name, size) \
    type* const name = static_cast<type*>(emulate::shared_memory(__LINE__, sizeof(type) * (size)))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaDriverGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
    return "no error";
}

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}

namespace emulate {

constexpr unsigned warp_size = 32, max_threads = 1024;
constexpr size_t stack_bytes = 256 << 10;

enum class State { unstarted, running, at_barrier, at_shuffle, done };

struct Thread {
    State state;
    struct Fiber* fiber;
    unsigned num_shuffles;
    uint64_t slots[2];  // what it offers: of this shuffle and of the one before, which others may not have read yet
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    bool idle = true;
};

struct SharedArray {
    int line;
    size_t size;
    std::unique_ptr<char[]> memory;
};

inline int schedule = 0;  // 0: ascending, 1: descending, else the seed of a shuffle
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Thread> threads;
inline std::vector<unsigned> turns;
inline size_t next_turn;
inline unsigned current;
inline ucontext_t scheduler;
inline const std::function<void()>* body;
inline std::vector<SharedArray> shared_arrays;

inline std::vector<unsigned> shuffled(unsigned count, unsigned salt) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (schedule == 1) std::reverse(order.begin(), order.end());
    if (schedule > 1) std::shuffle(order.begin(), order.end(), std::mt19937(unsigned(schedule) * 7919u + salt));
    return order;
}

inline void* shared_memory(int line, size_t size) {
    for (SharedArray& array : shared_arrays)
        if (array.line == line && array.size == size) return array.memory.get();
    shared_arrays.push_back({line, size, std::unique_ptr<char[]>(new char[size])});
    std::memset(shared_arrays.back().memory.get(), 0xff, size);
    return shared_arrays.back().memory.get();
}

inline void enter(unsigned thread) {
    current = thread;
    threadIdx = dim3(thread);
    threads[thread].state = State::running;
}

// A fiber runs thread after thread; only those that wait for others keep it.
inline void fiber_main(unsigned index) {
    Fiber* fiber = fibers[index].get();
    for (;;) {
        while (next_turn < turns.size()) {
            enter(turns[next_turn++]);
            threads[current].fiber = fiber;
            (*body)();
            threads[current].state = State::done;
        }
        fiber->idle = true;
        swapcontext(&fiber->context, &scheduler);
    }
}

inline void wait(State state) {
    threads[current].state = state;
    swapcontext(&threads[current].fiber->context, &scheduler);
}

inline Fiber& idle_fiber() {
    for (auto& fiber : fibers)
        if (fiber->idle) return *fiber;
    fibers.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *fibers.back();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(fiber_main), 1, unsigned(fibers.size() - 1));
    return fiber;
}

inline bool all(unsigned first, unsigned end, State state) {
    return std::all_of(threads.begin() + first, threads.begin() + end,
                       [=](const Thread& thread) { return thread.state == state; });
}

// Lets the threads go on whose barrier or shuffle is complete; false where nobody can.
inline bool release() {
    const unsigned count = unsigned(threads.size());
    std::vector<bool> ready(count, all(0, count, State::at_barrier));
    for (unsigned warp = 0; warp + warp_size <= count; warp += warp_size)
        if (all(warp, warp + warp_size, State::at_shuffle))
            std::fill(ready.begin() + warp, ready.begin() + warp + warp_size, true);
    for (const unsigned thread : turns)
        if (ready[thread]) {
            enter(thread);
            swapcontext(&scheduler, &threads[thread].fiber->context);
        }
    return std::find(ready.begin(), ready.end(), true) != ready.end();
}

inline void run_block(unsigned num_threads, unsigned salt) {
    threads.assign(num_threads, Thread{State::unstarted, nullptr, 0, {}});
    turns = shuffled(num_threads, salt);
    next_turn = 0;
    shared_arrays.clear();
    do {
        while (next_turn < turns.size()) {
            Fiber& fiber = idle_fiber();
            fiber.idle = false;
            swapcontext(&scheduler, &fiber.context);
        }
    } while (release());
}

inline void run(const char* name, dim3 grid, unsigned block, const std::function<void()>& kernel) {
    if (block > max_threads || grid.y > 65535 || grid.x > 0x7fffffffu)
        throw std::runtime_error(std::string("CUDA kernel ") + name + ": invalid configuration argument");
    body = &kernel;
    gridDim = grid;
    blockDim = dim3(block);
    for (const unsigned index : shuffled(grid.x * grid.y, 1)) {
        blockIdx = dim3(index % grid.x, index / grid.x);
        run_block(block, index + 2);
        if (!all(0, block, State::done)) {
            fibers.clear();
            throw std::runtime_error(std::string("CUDA kernel ") + name +
                                     ": a barrier or shuffle that not all threads reach");
        }
    }
}

// What `lane` of this warp offers, given its index and the values of the whole warp.
template <class T, class Choose>
T exchange(unsigned mask, T value, Choose choose) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves registers");
    if (mask != 0xffffffffu) throw std::runtime_error("only full-warp shuffles are emulated");
    const unsigned self = current, warp = self / warp_size * warp_size;
    const unsigned parity = threads[self].num_shuffles++ & 1;
    std::memcpy(&threads[self].slots[parity], &value, sizeof(T));
    wait(State::at_shuffle);
    T values[warp_size];
    for (unsigned lane = 0; lane < warp_size; ++lane)
        std::memcpy(&values[lane], &threads[warp + lane].slots[parity], sizeof(T));
    return choose(values, self - warp);
}

}  // namespace emulate

inline void __syncthreads() {
    emulate::wait(emulate::State::at_barrier);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return emulate::exchange(mask, value,
                             [=](const T* values, unsigned lane) { return values[lane ^ unsigned(lanes)]; });
}

inline int __reduce_max_sync(unsigned mask, int value) {
    return emulate::exchange(mask, value, [](const int* values, unsigned) {
        return *std::max_element(values, values + emulate::warp_size);
    });
}
