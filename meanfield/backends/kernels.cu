// Kernels of the CUDA backend; `cuda_source` puts the constants of `noise` before this text and names the instances.
//
// A cloud is (m, D) row by row, D = d + 1, the last coordinate u. Kernels write each result in one place and sum in an
// order that the launch alone fixes (no atomics), so two runs give equal bits. The text is plain C++ but for thread
// indices, `scratch` and barriers; the tests also compile it for the CPU.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

enum { THETA = 1, U = 2 };  // bits of `train`: which coordinates move
// SAMPLES and PARTICLES are those of a tile in shared memory; sums over a tile are in the kernel's own precision.

// --- arithmetic rounded operation by operation, which no compiler fuses

__device__ inline double add(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double over(double a, double b) { return __ddiv_rn(a, b); }
__device__ inline double root(double a) { return __dsqrt_rn(a); }
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float over(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float root(float a) { return __fsqrt_rn(a); }

__device__ inline i64 as_bits(double a) { return __double_as_longlong(a); }
__device__ inline int as_bits(float a) { return __float_as_int(a); }
__device__ inline double as_number(i64 bits) { return __longlong_as_double(bits); }
__device__ inline float as_number(int bits) { return __int_as_float(bits); }

// --- noise: the definition, word by word and in its order of operations, is `meanfield.noise`

template <class T> struct Format;

template <> struct Format<double> {
    typedef i64 integer;
    static const int per_block = 2, mantissa = DOUBLE_MANTISSA;
    static const i64 sqrt_half = DOUBLE_SQRT_HALF;
    static __device__ inline double ln2(int part) { return part ? DOUBLE_LN2_LOW : DOUBLE_LN2_HIGH; }
    static __device__ inline double log(double z);
    static __device__ inline double sin(double z);
    static __device__ inline double cos(double z);
};

template <> struct Format<float> {
    typedef int integer;
    static const int per_block = 4, mantissa = FLOAT_MANTISSA;
    static const int sqrt_half = FLOAT_SQRT_HALF;
    static __device__ inline float ln2(int part) { return part ? FLOAT_LN2_LOW : FLOAT_LN2_HIGH; }
    static __device__ inline float log(float z);
    static __device__ inline float sin(float z);
    static __device__ inline float cos(float z);
};

template <class T, int N> __device__ inline T polynomial(const T (&c)[N], T z) {
    T value = mul(z, c[N - 1]);
#pragma unroll
    for (int i = N - 2; i > 0; --i) value = mul(add(value, c[i]), z);
    return add(value, c[0]);
}

#define POLYNOMIAL(T, NAME, ...)                         \
    __device__ inline T Format<T>::NAME(T z) {           \
        const T c[] = __VA_ARGS__;                       \
        return polynomial(c, z);                         \
    }
POLYNOMIAL(double, log, DOUBLE_LOG)
POLYNOMIAL(double, sin, DOUBLE_SIN)
POLYNOMIAL(double, cos, DOUBLE_COS)
POLYNOMIAL(float, log, FLOAT_LOG)
POLYNOMIAL(float, sin, FLOAT_SIN)
POLYNOMIAL(float, cos, FLOAT_COS)

template <class T> __device__ inline T logarithm(T x) {
    typedef Format<T> F;
    typedef typename F::integer integer;
    integer bits = as_bits(x) - F::sqrt_half;
    T exponent = (T)(bits >> F::mantissa);
    bits &= ((integer)1 << F::mantissa) - 1;
    bits += F::sqrt_half;
    T f = add(as_number(bits), (T)-1);
    T s = over(f, add(f, (T)2));
    T z = mul(s, s);
    T tail = mul(add(f, -mul(F::log(z), z)), s);
    tail = add(tail, -mul(exponent, F::ln2(1)));
    return add(add(f, -tail), mul(exponent, F::ln2(0)));
}

// x and y of Box and Muller, their signs in the two uppermost bits of an integer.
template <class T> __device__ inline void box_muller(T u, T f, typename Format<T>::integer signs, T* x, T* y) {
    typedef typename Format<T>::integer integer;
    const integer top = (integer)1 << (8 * sizeof(integer) - 1);
    T radius = root(-logarithm(u));
    T z = mul(f, f);
    T cosine = add(mul(Format<T>::cos(z), z), (T)1), sine = mul(Format<T>::sin(z), f);
    *x = as_number(as_bits(mul(add(cosine, -sine), radius)) ^ (signs & top));
    *y = as_number(as_bits(mul(add(cosine, sine), radius)) ^ ((integer)((u64)signs << 1) & top));
}

__device__ inline void normals(const u32* word, double* xi) {
    u64 first = (u64)word[0] << 20 | word[1] >> 12, second = (u64)word[2] << 20 | word[3] >> 12;
    double u = add(as_number((i64)(first | 0x3FF0000000000000ull)), -(1.0 - 0x1p-53));
    u64 angle = (second & 0x3FFFFFFFFFFFFull) << 2 | 0x3FF0000000000000ull;
    box_muller(u, add(as_number((i64)angle), -(1.5 - 0x1p-51)), (i64)(second << 12), xi, xi + 1);
}

__device__ inline void normals(const u32* word, float* xi) {
    for (int pair = 0; pair < 4; pair += 2) {
        float u = mul(add((float)word[pair], 0.5f), 0x1p-32f);
        int centred = (int)(word[pair + 1] & 0x3FFFFFFFu) - (1 << 29);
        float f = mul(add((float)centred, 0.5f), 0x1p-30f);
        box_muller(u < 1.0f - 0x1p-24f ? u : 1.0f - 0x1p-24f, f, (int)word[pair + 1], xi + pair, xi + pair + 1);
    }
}

// What names the numbers of one step: key, step, and stream << 24 | replicate.
struct Name {
    u64 seed;
    u32 step, last;
};

// Philox4x32-10 of (particle, block, step, last): the normals of `per_block` neighbouring coordinates.
template <class T> __device__ inline void draw(Name name, u32 particle, u32 block, T* xi) {
    u32 word[4] = {particle, block, name.step, name.last}, low = (u32)name.seed, high = (u32)(name.seed >> 32);
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        u64 even = (u64)word[0] * MULTIPLIER_0, odd = (u64)word[2] * MULTIPLIER_1;
        u32 first = (u32)(odd >> 32) ^ word[1] ^ low, third = (u32)(even >> 32) ^ word[3] ^ high;
        word[0] = first, word[1] = (u32)odd, word[2] = third, word[3] = (u32)even;
        low += INCREMENT_0, high += INCREMENT_1;
    }
    normals(word, xi);
}

// --- activations: (h, h') and (h, h', h'', h'''), as `meanfield.units` writes them; NaN stays NaN

template <class T> __device__ inline T clipped(T w) { return w < (T)-40 ? (T)-40 : w > (T)40 ? (T)40 : w; }

struct Tanh {
    template <class T> static __device__ inline void pair(T w, T& h, T& h1) { h = tanh(w), h1 = 1 - h * h; }
    template <class T> static __device__ inline void jet(T w, T& h, T& h1, T& h2, T& h3) {
        pair(w, h, h1);
        h2 = -2 * h * h1, h3 = h1 * (4 - 6 * h1);
    }
};

struct Erf {
    template <class T> static __device__ inline void pair(T w, T& h, T& h1) {
        T v = clipped(w);
        h = erf(w), h1 = (T)1.1283791670955126 * exp(-(v * v));
    }
    template <class T> static __device__ inline void jet(T w, T& h, T& h1, T& h2, T& h3) {
        pair(w, h, h1);
        T v = clipped(w);
        h2 = -2 * v * h1, h3 = -2 * (h1 + v * h2);
    }
};

struct ErfSqrt2 {
    template <class T> static __device__ inline void pair(T w, T& h, T& h1) {
        Erf::pair(w * (T)0.70710678118654757, h, h1);
        h1 *= (T)0.70710678118654757;
    }
    template <class T> static __device__ inline void jet(T w, T& h, T& h1, T& h2, T& h3) {
        pair(w, h, h1);
        T v = clipped(w);
        h2 = -v * h1, h3 = -(h1 + v * h2);
    }
};

// e^-|w|, sigma, sigma' and 1 - 2 sigma from one exponential, none of which can overflow.
template <class T> __device__ inline void logistic(T w, T& e, T& sigma, T& slope, T& tilt) {
    e = exp(-fabs(w));
    T larger = 1 / (1 + e), smaller = e * larger;
    sigma = w < 0 ? smaller : larger;
    slope = smaller * larger;
    tilt = copysign(larger - smaller, -w);
}

struct Sigmoid {
    template <class T> static __device__ inline void pair(T w, T& h, T& h1) {
        T e, tilt;
        logistic(w, e, h, h1, tilt);
    }
    template <class T> static __device__ inline void jet(T w, T& h, T& h1, T& h2, T& h3) {
        T e, tilt;
        logistic(w, e, h, h1, tilt);
        h2 = h1 * tilt, h3 = h1 * (1 - 6 * h1);
    }
};

struct Relu {
    template <class T> static __device__ inline void pair(T w, T& h, T& h1) {
        h = w < 0 ? (T)0 : w, h1 = w > 0 ? (T)1 : (T)0;
    }
    template <class T> static __device__ inline void jet(T w, T& h, T& h1, T& h2, T& h3) {
        pair(w, h, h1);
        h2 = h3 = 0;
    }
};

struct Softplus {
    template <class T> static __device__ inline void pair(T w, T& h, T& h1) {
        T h2, h3;
        jet(w, h, h1, h2, h3);
    }
    template <class T> static __device__ inline void jet(T w, T& h, T& h1, T& h2, T& h3) {
        T e, tilt;
        logistic(w, e, h1, h2, tilt);
        h = (w < 0 ? (T)0 : w) + log1p(e), h3 = h2 * tilt;
    }
};

struct Sin {
    template <class T> static __device__ inline void pair(T w, T& h, T& h1) { h = sin(w), h1 = cos(w); }
    template <class T> static __device__ inline void jet(T w, T& h, T& h1, T& h2, T& h3) {
        pair(w, h, h1);
        h2 = -h, h3 = -h1;
    }
};

struct Linear {
    template <class T> static __device__ inline void pair(T w, T& h, T& h1) { h = w, h1 = 1; }
    template <class T> static __device__ inline void jet(T w, T& h, T& h1, T& h2, T& h3) {
        h = w, h1 = 1, h2 = h3 = 0;
    }
};

// --- kernels for every d

// Normals of `count` particles from number `first` on, `width` columns from block `first_block` on; a thread a block.
template <class T>
__global__ void gaussian(T* out, i64 count, i64 width, u32 first, u32 first_block, u64 seed, u32 step, u32 last) {
    const int per = Format<T>::per_block;
    const i64 across = (width + per - 1) / per, index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count * across) return;
    const i64 row = index / across, block = index % across;
    const Name name = {seed, step, last};
    T xi[per];
    draw(name, first + (u32)row, first_block + (u32)block, xi);
    for (int e = 0; e < per && block * per + e < width; ++e) out[row * width + block * per + e] = xi[e];
}

// h, h', h'', h''' of every number.
template <class T, class H> __global__ void jets(const T* w, i64 count, T* h, T* h1, T* h2, T* h3) {
    const i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) H::jet(w[index], h[index], h1[index], h2[index], h3[index]);
}

// Columns of `partial`, shape (rows, n), summed: slices of rows y, y + 32, ..., then the slices in order.
template <class T> __global__ void fold(const T* partial, i64 rows, i64 n, T* out) {
    extern __shared__ double scratch[];
    T* sums = (T*)scratch;
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    T total = 0;
    if (i < n)
        for (i64 row = threadIdx.y; row < rows; row += blockDim.y) total += partial[row * n + i];
    sums[threadIdx.y * blockDim.x + threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y || i >= n) return;
    for (u32 y = 1; y < blockDim.y; ++y) total += sums[y * blockDim.x + threadIdx.x];
    out[i] = total;
}

// --- kernels for large d, around products of matrices: w = theta . x of a chunk is there, shape (rows, n)

// Row blockIdx.x of `out`: sign sum_j w_j u_j h over `per` particles; a thread a sample.
template <class T, class H>
__global__ void values(const T* w, const T* z, const T* weights, T mass, T sign, i64 rows, i64 n, i64 width, i64 per,
                       double* out) {
    const i64 i = (i64)blockIdx.y * blockDim.x + threadIdx.x, first = blockIdx.x * per;
    const i64 last = first + per < rows ? first + per : rows;
    if (i >= n) return;
    double total = 0;
    for (i64 top = first; top < last; top += PARTICLES) {
        T part = 0;
        for (i64 j = top; j < last && j < top + PARTICLES; ++j) {
            T h, h1;
            H::pair(w[j * n + i], h, h1);
            part += (weights ? weights[j] : mass) * z[j * width + width - 1] * h;
        }
        total += part;
    }
    out[blockIdx.x * n + i] = sign * total;
}

// Replace w by u c h', and write b_u = sum_i c_i h_i; a block a particle, its threads over the samples.
template <class T, class H>
__global__ void slopes(T* w, const T* z, const double* c, i64 n, i64 width, T* bu) {
    extern __shared__ double scratch[];
    T* sums = (T*)scratch;
    T* row = w + (i64)blockIdx.x * n;
    const T u = z[((i64)blockIdx.x + 1) * width - 1];
    T total = 0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) {
        T h, h1, ci = (T)c[i];
        H::pair(row[i], h, h1);
        total += ci * h;
        row[i] = ci * u * h1;
    }
    sums[threadIdx.x] = total;
    for (u32 half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (!threadIdx.x) bu[blockIdx.x] = sums[0];
}

__device__ inline bool moves(int train, bool last_column) { return train & (last_column ? U : THETA); }

// z <- decay (keep z + eps b) + sigma xi and reference <- decay reference + sigma xi; a thread a block of coordinates.
template <class T>
__global__ void channel(const T* z, const T* b, const T* bu, const T* reference, T* out, T* far, i64 rows, i64 width,
                        int keep, T eps, T decay, T sigma, int train, u32 first, u64 seed, u32 step, u32 last) {
    const int per = Format<T>::per_block;
    const i64 across = (width + per - 1) / per, index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= rows * across) return;
    const i64 row = index / across, block = index % across;
    const Name name = {seed, step, last};
    T xi[per];
    for (int e = 0; e < per; ++e) xi[e] = 0;
    if (sigma != 0) draw(name, first + (u32)row, (u32)block, xi);
    for (int e = 0; e < per && block * per + e < width; ++e) {
        const i64 column = block * per + e, at = row * width + column;
        const bool moving = moves(train, column == width - 1);
        T here = keep ? z[at] : (T)0;
        if (moving && eps != 0) here += eps * (column == width - 1 ? bu[row] : b[at]);
        if (moving) here = add(mul(decay, here), mul(sigma, xi[e]));
        out[at] = here;
        if (reference) far[at] = moving ? add(mul(decay, reference[at]), mul(sigma, xi[e])) : reference[at];
    }
}

// --- fused kernels for small d: nothing of size m n is stored

// Row blockIdx.x of `out`: sum_j w_j (psi_i(z_j) - psi_i(zbar_j)) over `per` particles; a thread a sample.
template <class T, class H, int d>
__global__ void predict(const T* x, const T* z, const T* reference, const T* weights, T mass, i64 m, i64 n, i64 per,
                        double* out) {
    extern __shared__ double scratch[];
    T* tile = (T*)scratch;  // (PARTICLES, d + 1): theta, and w u in the last column
    const i64 i = (i64)blockIdx.y * blockDim.x + threadIdx.x, start = blockIdx.x * per;
    const i64 last = start + per < m ? start + per : m;
    T at[d];
#pragma unroll
    for (int k = 0; k < d; ++k) at[k] = i < n ? x[i * d + k] : (T)0;
    double total = 0;
    for (int far = 0; far < (reference ? 2 : 1); ++far) {
        const T* cloud = far ? reference : z;
        for (i64 first = start; first < last; first += PARTICLES) {
            const int count = last - first < PARTICLES ? (int)(last - first) : PARTICLES;
            __syncthreads();
            for (int e = threadIdx.x; e < count * (d + 1); e += blockDim.x) {
                T value = cloud[first * (d + 1) + e];
                if (e % (d + 1) == d) value *= weights ? weights[first + e / (d + 1)] : mass;
                tile[e] = value;
            }
            __syncthreads();
            T part = 0;
            for (int j = 0; j < count; ++j) {
                const T* row = tile + j * (d + 1);
                T w = 0, h, h1;
#pragma unroll
                for (int k = 0; k < d; ++k) w += row[k] * at[k];
                H::pair(w, h, h1);
                part += row[d] * h;
            }
            total += far ? -part : part;
        }
    }
    if (i < n) out[blockIdx.x * n + i] = total;
}

// here <- keep here + eps b for the block's particles, coordinate k of particle p at here[k (blockDim.x + 1) + p].
// threadIdx.x is the particle, threadIdx.y the slice of samples, whose sums are added in order.
template <class T, class H, int d>
__device__ void kick(const T* x, const double* c, i64 n, T eps, int keep, int train, T* here, T* sums, T* tile) {
    const int stride = blockDim.x + 1, p = threadIdx.x, slices = blockDim.y, y = threadIdx.y;
    T theta[d], b[d + 1];
    const T u = here[d * stride + p];
#pragma unroll
    for (int k = 0; k < d; ++k) theta[k] = here[k * stride + p];
#pragma unroll
    for (int k = 0; k <= d; ++k) b[k] = 0;
    for (i64 first = 0; first < n; first += SAMPLES) {
        const int count = n - first < SAMPLES ? (int)(n - first) : SAMPLES;
        __syncthreads();
#pragma unroll 1
        for (int e = y * blockDim.x + p; e < count * (d + 1); e += blockDim.x * slices) {
            const int i = e / (d + 1), k = e % (d + 1);
            tile[e] = k < d ? x[(first + i) * d + k] : (T)c[first + i];
        }
        __syncthreads();
        for (int i = y; i < count; i += slices) {
            const T* row = tile + i * (d + 1);
            T w = 0, h, h1;
#pragma unroll
            for (int k = 0; k < d; ++k) w += theta[k] * row[k];
            H::pair(w, h, h1);
            b[d] += row[d] * h;
            const T g = row[d] * u * h1;
#pragma unroll
            for (int k = 0; k < d; ++k) b[k] += g * row[k];
        }
    }
    for (int slice = 0; slice < slices; ++slice) {
        if (y == slice) {
#pragma unroll
            for (int k = 0; k <= d; ++k) sums[k * stride + p] = slice ? sums[k * stride + p] + b[k] : b[k];
        }
        __syncthreads();
    }
#pragma unroll 1
    for (int k = y; k <= d; k += slices) {
        const T old = keep ? here[k * stride + p] : (T)0;
        here[k * stride + p] = moves(train, k == d) ? old + eps * sums[k * stride + p] : old;
    }
    __syncthreads();
}

// Copy the block's particles between memory and shared memory, neighbouring threads at neighbouring addresses.
template <class T, int d, bool load> __device__ inline void exchange(T* memory, i64 first, i64 m, T* shared) {
    const int stride = blockDim.x + 1, threads = blockDim.x * blockDim.y;
#pragma unroll 1
    for (int e = threadIdx.y * blockDim.x + threadIdx.x; e < (int)blockDim.x * (d + 1); e += threads) {
        const int p = e / (d + 1), k = e % (d + 1);
        const bool inside = first + p < m;
        if (load) shared[k * stride + p] = inside ? memory[first * (d + 1) + e] : (T)0;
        else if (inside) memory[first * (d + 1) + e] = shared[k * stride + p];
    }
}

// Kick of length `before`, channel, kick of length `after`, for cloud and reference; out may be z, far reference.
// `number` is that of the first particle in the whole cloud, of which z may be some rows: it names the noise.
template <class T, class H, int d>
__global__ void move(const T* x, const double* c, T* z, T* reference, T* out, T* far, i64 m, i64 n, int keep, T before,
                     T decay, T sigma, T after, int train, u32 number, u64 seed, u32 step, u32 last) {
    extern __shared__ double scratch[];
    const int stride = blockDim.x + 1, per = Format<T>::per_block, p = threadIdx.x;
    T *here = (T*)scratch, *there = here + (d + 1) * stride, *tile = there + (d + 1) * stride;
    const i64 first = (i64)blockIdx.x * blockDim.x;
    const Name name = {seed, step, last};
    exchange<T, d, true>(z, first, m, here);
    __syncthreads();
#pragma unroll 1  // one copy of the kick's code
    for (int kicks = 0; kicks < 2; ++kicks) {
        const T eps = kicks ? after : before;
        if (eps != 0) kick<T, H, d>(x, c, n, eps, keep, train, here, there, tile);
        if (kicks) break;
        if (reference) exchange<T, d, true>(reference, first, m, there);
        __syncthreads();
#pragma unroll 1
        for (int block = threadIdx.y; block * per <= d; block += blockDim.y) {
            T xi[per];
            for (int e = 0; e < per; ++e) xi[e] = 0;
            if (sigma != 0) draw(name, number + (u32)(first + p), (u32)block, xi);
            for (int e = 0; e < per; ++e) {
                const int k = block * per + e, at = k * stride + p;
                if (k > d || !moves(train, k == d)) continue;
                here[at] = add(mul(decay, here[at]), mul(sigma, xi[e]));
                if (reference) there[at] = add(mul(decay, there[at]), mul(sigma, xi[e]));
            }
        }
        __syncthreads();
        if (reference) exchange<T, d, false>(far, first, m, there);  // the next kick begins with a barrier
    }
    exchange<T, d, false>(out, first, m, here);
}
