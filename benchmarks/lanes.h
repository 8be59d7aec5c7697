// Vectors of numbers and the functions of the step on them: tanh, exp, log, Philox4x32-10 and Box-Muller, as polynomials.
//
// Sixty-four bytes a vector where the processor has AVX-512, less elsewhere; GCC's vector extensions do the rest.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#if defined(__AVX512F__)
constexpr int BYTES = 64, PACK = 4, ROWS = 5;
#elif defined(__AVX2__)
constexpr int BYTES = 32, PACK = 2, ROWS = 5;
#else
constexpr int BYTES = 16, PACK = 2, ROWS = 5;
#endif

typedef uint64_t Words __attribute__((vector_size(BYTES)));  // one 32-bit word in each 64-bit lane

template <class T> struct Format;
template <> struct Format<double> {
    typedef double V __attribute__((vector_size(BYTES)));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    static constexpr double magic = 6755399441055744.0, ln2_high = 0.6931471805598903, ln2_low = 5.497923018708371e-14;
    static constexpr int mantissa = 52, normals = 2, groups = 1;
    static constexpr int64_t one = 0x3FF0000000000000, sqrt_half = 0x3FE6A09E667F3BCD;
    static constexpr double flat = 40, low = -700;
    // (e^r - 1 - r) / r^2 on |r| <= log(2) / 2, interpolated at Chebyshev nodes, error 3.6e-17 of e^r - 1
    static constexpr double expm1[] = {0.5000000000000001, 0.16666666666666669, 0.04166666666662413, 0.008333333333330062,
        0.0013888888917213717, 0.00019841269863053618, 2.4801521295954376e-05, 2.7557268459997064e-06,
        2.7620088445409746e-07, 2.510038549551032e-08};
    // the next three as in meanfield/noise.py
    static constexpr double log[] = {0.666666666666667, 0.39999999999899505, 0.28571428625975487, 0.2222221113479508,
        0.18182889125261723, 0.15331721600556042, 0.14616449685043406};
    static constexpr double sin[] = {1.5707963267948966, -0.6459640975062443, 0.07969262624604301, -0.004681754132340976,
        0.0001604411507421909, -3.59864335298231e-06, 5.633933781537854e-08};
    static constexpr double cos[] = {-1.2337005501361697, 0.2536695079010478, -0.020863480763340773,
        0.0009192602745468447, -2.5202039028029178e-05, 4.710678405505227e-07, -6.329396344967424e-09};
};
template <> struct Format<float> {
    typedef float V __attribute__((vector_size(BYTES)));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    static constexpr float magic = 12582912.0f, ln2_high = 0.693145751953125f, ln2_low = 1.428606765330187e-06f;
    static constexpr int mantissa = 23, normals = 4, groups = 2;
    static constexpr int32_t one = 0x3F800000, sqrt_half = 0x3F3504F3;
    static constexpr float flat = 20, low = -80;
    static constexpr float expm1[] = {0.5f, 0.16666576989698775f, 0.041666554617204574f, 0.008363179052722578f,
        0.0013926183587713494f};
    static constexpr float log[] = {0.6666668653488159f, 0.3998878002166748f, 0.29579949378967285f};
    static constexpr float sin[] = {1.5707963705062866f, -0.6459634900093079f, 0.07968021929264069f,
        -0.004602149128913879f};
    static constexpr float cos[] = {-1.2337005138397217f, 0.253669410943985f, -0.02086152881383896f,
        0.0009067399078048766f};
};
template <class T> using V = typename Format<T>::V;
template <class T> using I = typename Format<T>::I;
template <class T> constexpr int LANES = BYTES / sizeof(T);

template <class T> INLINE V<T> all(T value) { return value - V<T>{}; }
template <class T> INLINE I<T> bits(V<T> v) { return (I<T>)v; }
template <class T> INLINE V<T> least(V<T> a, V<T> b) { return a < b ? a : b; }
template <class T> INLINE V<T> most(V<T> a, V<T> b) { return a > b ? a : b; }

template <class T> INLINE V<T> root(V<T> v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 8) return (V<T>)_mm512_sqrt_pd((__m512d)v);
    else return (V<T>)_mm512_sqrt_ps((__m512)v);
#else
    V<T> out;
    for (int l = 0; l < LANES<T>; l++) out[l] = __builtin_sqrt(v[l]);
    return out;
#endif
}

template <class T, int N> INLINE V<T> polynomial(const T (&c)[N], V<T> z) {
    V<T> value = all<T>(c[N - 1]);
#pragma GCC unroll 12
    for (int k = N - 2; k >= 0; k--) value = value * z + c[k];
    return value;
}

#define EACH for (int j = 0; j < N; j++)

// 2^k and e^r - 1 of x = k log 2 + r for N vectors side by side, so that the processor always finds independent work;
// x must lie in the range of exponents.
template <class T, int N> INLINE void split(const V<T> *x, V<T> *scale, V<T> *p) {
    typedef Format<T> F;
    V<T> r[N];
    constexpr int terms = sizeof(F::expm1) / sizeof(T);
    EACH scale[j] = x[j] * T(1.4426950408889634) + F::magic;
    EACH p[j] = scale[j] - F::magic;
    EACH r[j] = x[j] - p[j] * F::ln2_high;
    EACH r[j] = r[j] - p[j] * F::ln2_low;
    EACH scale[j] = (V<T>)((bits<T>(scale[j]) << F::mantissa) + F::one);
    EACH p[j] = all<T>(F::expm1[terms - 1]);
#pragma GCC unroll 12
    for (int k = terms - 2; k >= 0; k--) EACH p[j] = p[j] * r[j] + F::expm1[k];
    EACH p[j] = p[j] * (r[j] * r[j]) + r[j];
}

// E / (E + 2), E = e^(2 w) - 1, of N vectors in place: at most 3 ulp
template <class T, int N> INLINE void tanh(V<T> *w) {
    V<T> x[N], scale[N], p[N];
    EACH x[j] = most<T>(least<T>(w[j] + w[j], all<T>(Format<T>::flat)), all<T>(-Format<T>::flat));
    split<T, N>(x, scale, p);
    EACH p[j] = p[j] * scale[j] + (scale[j] - T(1));
    EACH w[j] = p[j] / (p[j] + T(2));
}

template <class T, int N> INLINE void exp(V<T> *x) {
    V<T> scale[N], p[N];
    EACH x[j] = most<T>(x[j], all<T>(Format<T>::low));
    split<T, N>(x, scale, p);
    EACH x[j] = p[j] * scale[j] + scale[j];
}

template <class T> INLINE V<T> log(V<T> x) {
    typedef Format<T> F;
    I<T> b = bits<T>(x) - F::sqrt_half;
    V<T> exponent = __builtin_convertvector(b >> F::mantissa, V<T>);
    V<T> f = (V<T>)((b & ((typename std::remove_cv<decltype(F::one)>::type(1) << F::mantissa) - 1)) + F::sqrt_half) - T(1);
    V<T> s = f / (f + T(2)), z = s * s, tail = polynomial<T>(F::log, z) * z;
    return exponent * F::ln2_high + (f - ((f - tail) * s - exponent * F::ln2_low));
}

// radius and angle of Box and Muller: two normals, their signs from the two uppermost bits
template <class T> INLINE void box_muller(V<T> u, V<T> f, I<T> signs, V<T> &x, V<T> &y) {
    constexpr auto top = std::numeric_limits<typename std::remove_cv<decltype(Format<T>::one)>::type>::min();
    V<T> radius = root<T>(-log<T>(u)), z = f * f;
    V<T> c = polynomial<T>(Format<T>::cos, z) * z + T(1), s = polynomial<T>(Format<T>::sin, z) * f;
    x = (V<T>)(bits<T>((c - s) * radius) ^ (signs & top));
    y = (V<T>)(bits<T>((c + s) * radius) ^ (signs << 1 & top));
}

INLINE Words multiply(Words a, uint32_t b) {
#if defined(__AVX512F__)
    return (Words)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (Words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#else
    return (a & 0xFFFFFFFF) * uint64_t(b);
#endif
}

// Philox4x32-10; only the lower halves of lanes count, which `multiply` takes care of
INLINE void philox(Words (&w)[4], uint64_t seed) {
    uint32_t low = seed, high = seed >> 32;
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        Words p = multiply(w[0], 0xD2511F53), q = multiply(w[2], 0xCD9E8D57);
        w[0] = (q >> 32) ^ w[1] ^ uint64_t(low);
        w[2] = (p >> 32) ^ w[3] ^ uint64_t(high);
        w[1] = q, w[3] = p;
        low += 0x9E3779B9, high += 0xBB67AE85;
    }
}

INLINE void counter(Words (&w)[4], uint64_t particle, uint32_t block, uint32_t step, uint32_t stream) {
    for (unsigned l = 0; l < BYTES / 8; l++) w[0][l] = particle + l;
    w[1] = block - Words{}, w[2] = step - Words{}, w[3] = stream - Words{};
}

// The normals of coordinate block `block` for LANES particles from `particle` on: Format::normals vectors.
INLINE void normals(uint64_t seed, uint64_t particle, uint32_t block, uint32_t step, V<double> *out) {
    Words w[4];
    counter(w, particle, block, step, 1 << 24);
    philox(w, seed);
    constexpr uint64_t mask = 0xFFFFFFFF, one = 0x3FF0000000000000;
    Words first = (w[0] << 32 | (w[1] & mask)) >> 12, second = (w[2] << 32 | (w[3] & mask)) >> 12;
    V<double> u = (V<double>)(first | one) - (1 - 0x1p-53);
    V<double> f = (V<double>)((second << 14 >> 12) | one) - (1.5 - 0x1p-51);
    box_muller<double>(u, f, (I<double>)(second << 12), out[0], out[1]);
}

INLINE void normals(uint64_t seed, uint64_t particle, uint32_t block, uint32_t step, V<float> *out) {
    typedef uint32_t Narrow __attribute__((vector_size(BYTES)));
    typedef uint32_t Half __attribute__((vector_size(BYTES / 2)));
    Words w[2][4];
    Narrow word[4];
    for (int g = 0; g < 2; g++) {
        counter(w[g], particle + g * (BYTES / 8), block, step, 1 << 24);
        philox(w[g], seed);
    }
    for (int k = 0; k < 4; k++)
        for (int g = 0; g < 2; g++) {
            Half half = __builtin_convertvector(w[g][k], Half);
            std::memcpy((char *)&word[k] + g * sizeof half, &half, sizeof half);
        }
    for (int k = 0; k < 4; k += 2) {
        V<float> u = (__builtin_convertvector(word[k], V<float>) + 0.5f) * 0x1p-32f;
        I<float> angle = (I<float>)(word[k + 1] & ((1u << 30) - 1)) - (1 << 29);
        V<float> f = (__builtin_convertvector(angle, V<float>) + 0.5f) * 0x1p-30f;
        box_muller<float>(least<float>(u, all<float>(1 - 0x1p-24f)), f, (I<float>)word[k + 1], out[k], out[k + 1]);
    }
}
