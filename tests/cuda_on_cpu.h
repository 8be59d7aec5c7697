// Enough of CUDA to run kernels on a CPU: thread indices, shared memory, barriers, operations rounded one by one.
//
// A thread of a block is a fiber that runs until it meets a barrier; then the next one runs, and once all have met it,
// the first goes on. Threads may run in either order, so that a missing barrier shows as different numbers. Blocks run
// one after another, each with shared memory full of NaN. A barrier that only some threads meet, and a write past the
// shared memory that was asked for, are reported.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__

using std::copysign;
using std::erf;
using std::exp;
using std::fabs;
using std::log1p;
using std::tanh;

struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;
alignas(64) double scratch[1 << 14];

static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return std::sqrt(a); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return std::sqrt(a); }

template <class To, class From> static inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits of another size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
static inline long long __double_as_longlong(double a) { return same_bits<long long>(a); }
static inline double __longlong_as_double(long long a) { return same_bits<double>(a); }
static inline int __float_as_int(float a) { return same_bits<int>(a); }
static inline float __int_as_float(int a) { return same_bits<float>(a); }

namespace fibers {

const size_t STACK = 1 << 15, MOST = 1024;
enum State { RUNS, WAITS, DONE };

struct Fiber {
    ucontext_t context;  // to start it; jumps switch to and fro afterwards, which costs no system call
    jmp_buf place;
    bool started = false;
    State state;
};

static std::vector<Fiber> all(MOST);
static std::vector<char> stacks(MOST * STACK);
static jmp_buf scheduler;
static Fiber* current;
static void (*kernel)(void**);
static void** arguments;

static void leave(State state) {
    current->state = state;
    if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

static void body() {
    for (;;) {
        kernel(arguments);
        leave(DONE);
    }
}

static void start(Fiber& fiber) {
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks.data() + (&fiber - all.data()) * STACK;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, body, 0);
    setcontext(&fiber.context);
}

__attribute__((noinline)) static void resume() {
    if (_setjmp(scheduler)) return;
    if (current->started) _longjmp(current->place, 1);
    start(*current);
}

// Run every thread up to its next barrier or its end; the number that ended.
static size_t round(size_t threads, bool backwards) {
    size_t done = 0;
    for (size_t i = 0; i < threads; ++i) {
        const size_t t = backwards ? threads - 1 - i : i;
        current = &all[t];
        threadIdx = {unsigned(t % blockDim.x), unsigned(t / blockDim.x), 0};
        resume();
        done += current->state == DONE;
    }
    return done;
}

// 0, or 1 for a barrier that some threads left out, or 2 for a write past the shared memory that was asked for.
static int run_block(size_t shared, bool backwards) {
    const double canary = 12345.678;
    const size_t used = (shared + 7) / 8, size = sizeof scratch / sizeof *scratch;
    for (size_t i = 0; i < size; ++i) scratch[i] = i < used ? std::nan("") : canary;
    const size_t threads = blockDim.x * blockDim.y;
    size_t done = 0;
    while (done == 0) done = round(threads, backwards);
    for (size_t i = used; i < size; ++i)
        if (scratch[i] != canary) return 2;
    if (done == threads) return 0;
    for (Fiber& fiber : all) fiber.started = false;  // those that wait are given up
    return 1;
}

}  // namespace fibers

static inline void __syncthreads() { fibers::leave(fibers::WAITS); }

template <class... A, size_t... I>
static void spread(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}

// Call a kernel with arguments given as addresses, as the driver does.
template <class... A> static void call(void (*kernel)(A...), void** arguments) {
    spread(kernel, arguments, std::index_sequence_for<A...>());
}

typedef void (*Entry)(void**);

static int run(Entry kernel, const unsigned* grid, const unsigned* block, size_t shared, void** arguments,
               bool backwards) {
    if (shared > sizeof scratch || block[0] * block[1] > fibers::MOST) return 3;
    gridDim = {grid[0], grid[1], 1}, blockDim = {block[0], block[1], 1};
    fibers::kernel = kernel, fibers::arguments = arguments;
    for (unsigned y = 0; y < gridDim.y; ++y)
        for (unsigned x = 0; x < gridDim.x; ++x) {
            blockIdx = {x, y, 0};
            const int fault = fibers::run_block(shared, backwards);
            if (fault) return fault;
        }
    return 0;
}
