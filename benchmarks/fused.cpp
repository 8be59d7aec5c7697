// The ceiling: the same arithmetic as our steps, fused, in registers and first-level cache, over OpenMP threads.
//
//   euler   z <- z + eta (b - lam z) + sqrt(2 lam eta) xi,  b = -(2 alpha / n) sum_i r_i grad psi_i,  r = alpha f - y
//   pairs   v_j = (1/m) sum_k exp(-|z_j - z_k|^2 / (2 s^2)) and its gradient in z_j, every pair from both sides
//
// and the rates of which the floor is made. The lanes of a vector are particles, a tile is PACK vectors of them; the
// inner products of a tile with ROWS samples at a time fill the registers. Built by ceiling.py; nothing here knows Python.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "lanes.h"

constexpr int CHUNK = 50;  // samples whose activations of one tile stay in the first-level cache
constexpr int FLUSH = 64;  // tiles summed in the cloud's precision before they go into a double

// C[r] (+)= sum_q A[r * down + q * along] B[q], r < R, each C[r] and B[q] one tile of PACK vectors
template <class T, int R, bool ADD> INLINE void product(const T *a, long down, long along, const V<T> *b, long count, V<T> *c) {
    V<T> sum[R][PACK];
    for (int r = 0; r < R; r++)
        for (int p = 0; p < PACK; p++) sum[r][p] = ADD ? c[r * PACK + p] : V<T>{};
    for (long q = 0; q < count; q++)
        for (int r = 0; r < R; r++) {
            V<T> factor = all<T>(a[r * down + q * along]);
            for (int p = 0; p < PACK; p++) sum[r][p] += factor * b[q * PACK + p];
        }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < PACK; p++) c[r * PACK + p] = sum[r][p];
}

template <class T, bool ADD> void products(const T *a, long rows, long down, long along, const V<T> *b, long count, V<T> *c) {
    long r = 0;
    for (; r + ROWS <= rows; r += ROWS) product<T, ROWS, ADD>(a + r * down, down, along, b, count, c + r * PACK);
    for (; r < rows; r++) product<T, 1, ADD>(a + r * down, down, along, b, count, c + r * PACK);
}

template <class T> struct Problem {
    const T *x, *y;
    T *z, *kept;
    long n, d, m, keep;
    double alpha, lam, eta;
    uint64_t seed;
    uint32_t step;
    static constexpr long tile = PACK * LANES<T>;

    void load(long first, V<T> *to) const {
        long D = d + 1, count = std::min(tile, m - first);
        T *flat = (T *)to;
        if (count < tile) std::memset(flat, 0, D * tile * sizeof(T));
        for (long j = 0; j < count; j++)
            for (long k = 0; k < D; k++) flat[k * tile + j] = z[(first + j) * D + k];
    }
    void store(long first, const V<T> *from) const {
        long D = d + 1, count = std::min(tile, m - first);
        const T *flat = (const T *)from;
        for (long j = 0; j < count; j++)
            for (long k = 0; k < D; k++) z[(first + j) * D + k] = flat[k * tile + j];
    }
    void activations(const V<T> *theta, long i, long count, V<T> *h) const {
        products<T, false>(x + i * d, count, d, 1, theta, d, h);
        for (long k = 0; k < count; k++) tanh<T, PACK>(h + k * PACK);
    }
    // sum[i] += u h_i, lane by lane
    void predict(const V<T> *now, V<T> *sum, V<T> *room, V<T> *keep_at) const {
        for (long i = 0; i < n; i += CHUNK) {
            long count = std::min<long>(CHUNK, n - i);
            V<T> *h = keep_at ? keep_at + i * PACK : room;
            activations(now, i, count, h);
            for (long k = 0; k < count; k++) {
                V<T> s = sum[i + k];
                for (int p = 0; p < PACK; p++) s += now[d * PACK + p] * h[k * PACK + p];
                sum[i + k] = s;
            }
        }
    }
    void update(long first, V<T> *now, V<T> *b, const T *c, V<T> *room, const V<T> *keep_at) const {
        V<T> last[PACK] = {};
        std::fill(b, b + d * PACK, V<T>{});
        for (long i = 0; i < n; i += CHUNK) {
            long count = std::min<long>(CHUNK, n - i);
            if (!keep_at) activations(now, i, count, room);
            const V<T> *h = keep_at ? keep_at + i * PACK : room;
            for (long k = 0; k < count; k++)
                for (int p = 0; p < PACK; p++) {
                    V<T> ch = c[i + k] * h[k * PACK + p];
                    last[p] += ch;
                    room[k * PACK + p] = c[i + k] - ch * h[k * PACK + p];
                }
            products<T, true>(x + i * d, d, 1, d, room, count, b);
        }
        const V<T> *u = now + d * PACK;
        for (long k = 0; k < d; k++)
            for (int p = 0; p < PACK; p++) b[k * PACK + p] *= u[p];
        for (int p = 0; p < PACK; p++) b[d * PACK + p] = last[p];
        T decay = 1 - eta * lam, length = eta, sigma = __builtin_sqrt(2 * lam * eta);
        constexpr int per = Format<T>::normals;
        for (int p = 0; p < PACK; p++)
            for (long k = 0; k <= d; k += per) {
                V<T> xi[per];
                normals(seed, first + p * LANES<T>, k / per, step, xi);
                for (long q = k; q < std::min(d + 1, k + per); q++)
                    now[q * PACK + p] = decay * now[q * PACK + p] + length * b[q * PACK + p] + sigma * xi[q - k];
            }
    }
};

template <class T> void euler(Problem<T> P, int threads) {
    long n = P.n, D = P.d + 1, tiles = (P.m + P.tile - 1) / P.tile, keep = std::min(P.keep / P.tile, tiles);
    if (P.keep >= P.m) keep = tiles;
    std::vector<double> partial(threads * n);
#pragma omp parallel num_threads(threads)
    {
        static thread_local std::vector<V<T>> space;
        space.resize(n + (2 * D + CHUNK) * PACK);
        V<T> *sum = space.data(), *now = sum + n, *b = now + D * PACK, *room = b + D * PACK;
        long t = omp_get_thread_num(), team = omp_get_num_threads();  // perhaps fewer than were asked for
        long begin = tiles * t / team, end = tiles * (t + 1) / team;
        long kept_begin = keep * t / team, kept = keep * (t + 1) / team - kept_begin;
        // The last tiles of a thread are kept, and read first: they may still be in a cache.
        auto keep_at = [&](long tile) -> V<T> * {
            long place = tile - (end - kept);
            return place < 0 ? nullptr : (V<T> *)P.kept + (kept_begin + place) * n * PACK;
        };
        double *f = partial.data() + t * n;
        for (long tile = begin; tile < end; tile++) {
            if (tile == begin) std::fill(sum, sum + n, V<T>{});
            P.load(tile * P.tile, now);
            P.predict(now, sum, room, keep_at(tile));
            if ((tile - begin) % FLUSH == FLUSH - 1 || tile == end - 1)
                for (long i = 0; i < n; i++) {
                    for (int l = 0; l < LANES<T>; l++) f[i] += sum[i][l];
                    sum[i] = V<T>{};
                }
        }
#pragma omp barrier
        T *c = (T *)sum;
        for (long i = 0; i < n; i++) {
            double total = 0;
            for (int s = 0; s < threads; s++) total += partial[s * n + i];
            c[i] = -2 * P.alpha / n * (P.alpha * total / P.m - P.y[i]);
        }
        for (long tile = end - 1; tile >= begin; tile--) {
            P.load(tile * P.tile, now);
            P.update(tile * P.tile, now, b, c, room, keep_at(tile));
            P.store(tile * P.tile, now);
        }
    }
}

// Sources one by one against PACK vectors of targets; D is small, so that targets and sums stay in registers.
template <class T, int D> void pairs(const T *z, T *value, T *gradient, long m, double scale, int threads) {
    constexpr int pack = D <= 4 ? PACK : 1;
    constexpr long tile = pack * LANES<T>;
    const T rate = -0.5 / (scale * scale), factor = -1 / (scale * scale * m);
    long tiles = (m + tile - 1) / tile;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long t = 0; t < tiles; t++) {
        V<T> at[D][pack], sum[D][pack] = {}, mass[pack] = {};
        long count = std::min(tile, m - t * tile);
        for (int k = 0; k < D; k++)
            for (long j = 0; j < tile; j++) at[k][j / LANES<T>][j % LANES<T>] = j < count ? z[(t * tile + j) * D + k] : 0;
        for (long s = 0; s < m; s++) {
            V<T> e[pack] = {};
            for (int k = 0; k < D; k++)
                for (int p = 0; p < pack; p++) e[p] += (at[k][p] - z[s * D + k]) * (at[k][p] - z[s * D + k]);
            for (int p = 0; p < pack; p++) e[p] *= rate;
            exp<T, pack>(e);
            for (int p = 0; p < pack; p++) mass[p] += e[p];
            for (int k = 0; k < D; k++)
                for (int p = 0; p < pack; p++) sum[k][p] += e[p] * (at[k][p] - z[s * D + k]);
        }
        for (long j = 0; j < count; j++) {
            value[t * tile + j] = mass[j / LANES<T>][j % LANES<T>] / m;
            for (int k = 0; k < D; k++)
                gradient[(t * tile + j) * D + k] = factor * sum[k][j / LANES<T>][j % LANES<T>];
        }
    }
}

// --- rates, in units a second over all threads; everything in registers or the first-level cache

template <class T, class Work> double rate(int threads, double seconds, double units, Work work) {
    double total = 0;
    volatile T sink = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        V<T> value = {};
        work(value);
#pragma omp barrier
        double begin = omp_get_wtime(), now = begin;
        long rounds = 0;
        for (; now - begin < seconds; rounds++, now = omp_get_wtime()) work(value);
        total += rounds * units / (now - begin);
        sink = value[0];
    }
    (void)sink;
    return total;
}

template <class T> double multiply_add_rate(int threads, double seconds) {
    constexpr int chains = 12, length = 4000;
    return rate<T>(threads, seconds, 2.0 * chains * length * LANES<T>, [](V<T> &value) {
        V<T> sum[chains], factor = all<T>(T(0.999)) + value * T(1e-9), term = all<T>(T(1e-3));
        for (int k = 0; k < chains; k++) sum[k] = value + T(k);
        for (int i = 0; i < length; i++)
            for (int k = 0; k < chains; k++) sum[k] = sum[k] * factor + term;
        for (int k = 1; k < chains; k++) sum[0] += sum[k];
        value = sum[0] * T(1e-6);
    });
}

template <class T, void (*FUNCTION)(V<T> *)> double function_rate(int threads, double seconds) {
    constexpr int vectors = 128, repeats = 20;
    return rate<T>(threads, seconds, double(vectors) * repeats * LANES<T>, [](V<T> &value) {
        alignas(BYTES) V<T> data[vectors];
        for (int k = 0; k < vectors; k++) data[k] = value - T(0.01) * T(k);
        for (int i = 0; i < repeats; i++)
            for (int k = 0; k < vectors; k += 4) FUNCTION(data + k);
        for (int k = 0; k < vectors; k++) value += data[k] * T(1e-6);
    });
}

template <class T> double normals_rate(int threads, double seconds) {
    constexpr int counters = 256, per = Format<T>::normals;
    return rate<T>(threads, seconds, double(counters) * per * LANES<T>, [](V<T> &value) {
        V<T> xi[per];
        for (int k = 0; k < counters; k++) {
            normals(7, k * LANES<T>, k, 3, xi);
            for (int q = 0; q < per; q++) value += xi[q];
        }
    });
}

// Bytes a second of z <- a z, read and written both counted.
template <class T> double bandwidth(T *z, long count, int threads, int repeats) {
    double best = 0;
    for (int r = 0; r < repeats; r++) {
        double begin = omp_get_wtime();
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long k = 0; k < count; k++) z[k] *= T(1.0000001);
        best = std::max(best, 2.0 * count * sizeof(T) / (omp_get_wtime() - begin));
    }
    return best;
}

template <class T> int pairs_of(int D, const T *z, T *v, T *b, long m, double scale, int threads) {
    switch (D) {
        case 1: return pairs<T, 1>(z, v, b, m, scale, threads), 0;
        case 2: return pairs<T, 2>(z, v, b, m, scale, threads), 0;
        case 3: return pairs<T, 3>(z, v, b, m, scale, threads), 0;
        case 6: return pairs<T, 6>(z, v, b, m, scale, threads), 0;
        case 10: return pairs<T, 10>(z, v, b, m, scale, threads), 0;
        default: return 1;
    }
}

template <class T> void all_normals(T *out, long m, long D, uint64_t seed, uint32_t step, int threads) {
    constexpr int per = Format<T>::normals;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long j = 0; j < m; j += LANES<T>)
        for (long k = 0; k < D; k += per) {
            V<T> xi[per];
            normals(seed, j, k / per, step, xi);
            for (long l = 0; l < std::min<long>(LANES<T>, m - j); l++)
                for (long q = k; q < std::min(D, k + per); q++) out[(j + l) * D + q] = xi[q - k][l];
        }
}

#define EXPORT(T, NAME)                                                                                              \
    extern "C" void euler_##NAME(const T *x, const T *y, T *z, T *kept, long n, long d, long m, long keep,            \
                                 double alpha, double lam, double eta, uint64_t seed, uint32_t step, int threads) {   \
        euler<T>({x, y, z, kept, n, d, m, keep, alpha, lam, eta, seed, step}, threads);                               \
    }                                                                                                                 \
    extern "C" int pairs_##NAME(int D, const T *z, T *v, T *b, long m, double scale, int threads) {                   \
        return pairs_of<T>(D, z, v, b, m, scale, threads);                                                            \
    }                                                                                                                 \
    extern "C" void normals_##NAME(T *out, long m, long D, uint64_t seed, uint32_t step, int threads) {               \
        all_normals<T>(out, m, D, seed, step, threads);                                                               \
    }                                                                                                                 \
    extern "C" void tanh_##NAME(const T *w, T *h, long count) {                                                       \
        for (long k = 0; k < count; k++) {                                                                            \
            V<T> value = all<T>(w[k]);                                                                                \
            tanh<T, 1>(&value);                                                                                       \
            h[k] = value[0];                                                                                          \
        }                                                                                                             \
    }                                                                                                                 \
    extern "C" void rates_##NAME(int threads, double seconds, T *room, long count, double *out) {                     \
        out[0] = multiply_add_rate<T>(threads, seconds);                                                              \
        out[1] = function_rate<T, tanh<T, 4>>(threads, seconds);                                                         \
        out[2] = function_rate<T, exp<T, 4>>(threads, seconds);                                                          \
        out[3] = normals_rate<T>(threads, seconds);                                                                   \
        out[4] = bandwidth<T>(room, count, threads, 5);                                                               \
    }
EXPORT(double, float64)
EXPORT(float, float32)
