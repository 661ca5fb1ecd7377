/* Sixteen samples of a batch side by side, in the registers of each instruction set.
 *
 * Every variant does the same arithmetic in the same order: a lane never meets another but in
 * `sum_each`, whose tree is fixed, and a product that is added is always fused. So bits depend
 * neither on the CPU nor on the compiler, given -ffp-contract=off.
 *
 * VARIANT is avx512, avx2, neon or plain; build.py compiles every source once for each.
 * TILE is how many lanes the variant can keep in registers beside a few others.
 */
#ifndef LANES_H
#define LANES_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NUM_LANES 16

#define JOIN_(name, variant) name##_##variant
#define JOIN(name, variant) JOIN_(name, variant)
#define EXPORT __attribute__((visibility("default")))
#define NAMED(name) JOIN(name, VARIANT)
#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))
#if !defined(USE_AVX512) && !defined(USE_AVX2) && !defined(USE_NEON)
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(USE_AVX512)

#include <immintrin.h>
#define TILE 16
typedef __m512 lanes;

INLINE lanes load(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store(float *to, lanes a) { _mm512_storeu_ps(to, a); }
INLINE lanes load_quarter(const float *from) {
    return _mm512_zextps128_ps512(_mm_loadu_ps(from));
}
INLINE void store_quarter(float *to, lanes a) { _mm_storeu_ps(to, _mm512_castps512_ps128(a)); }
INLINE lanes spread(float a) { return _mm512_set1_ps(a); }
INLINE lanes add(lanes a, lanes b) { return _mm512_add_ps(a, b); }
INLINE lanes multiply(lanes a, lanes b) { return _mm512_mul_ps(a, b); }
INLINE lanes fused(lanes a, lanes b, lanes c) { return _mm512_fmadd_ps(a, b, c); }

#elif defined(USE_AVX2)

#include <immintrin.h>
#define TILE 6
typedef struct {
    __m256 low, high;
} lanes;

INLINE lanes load(const float *from) {
    return (lanes){_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
INLINE void store(float *to, lanes a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
}
INLINE lanes load_quarter(const float *from) {
    return (lanes){_mm256_insertf128_ps(_mm256_setzero_ps(), _mm_loadu_ps(from), 0),
                   _mm256_setzero_ps()};
}
INLINE void store_quarter(float *to, lanes a) { _mm_storeu_ps(to, _mm256_castps256_ps128(a.low)); }
INLINE lanes spread(float a) { return (lanes){_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
INLINE lanes add(lanes a, lanes b) {
    return (lanes){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
INLINE lanes multiply(lanes a, lanes b) {
    return (lanes){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
INLINE lanes fused(lanes a, lanes b, lanes c) {
    return (lanes){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

#elif defined(USE_NEON)

#include <arm_neon.h>
#define TILE 6
typedef float32x4x4_t lanes;

INLINE lanes load(const float *from) { return vld1q_f32_x4(from); }
INLINE void store(float *to, lanes a) { vst1q_f32_x4(to, a); }
INLINE lanes load_quarter(const float *from) {
    float32x4_t none = vdupq_n_f32(0.0f);
    return (lanes){{vld1q_f32(from), none, none, none}};
}
INLINE void store_quarter(float *to, lanes a) { vst1q_f32(to, a.val[0]); }
#define EACH(expression)                                                                           \
    lanes out;                                                                                     \
    UNROLL for (int q = 0; q < 4; q++) out.val[q] = (expression);                                  \
    return out
INLINE lanes spread(float a) { EACH(vdupq_n_f32(a)); }
INLINE lanes add(lanes a, lanes b) { EACH(vaddq_f32(a.val[q], b.val[q])); }
INLINE lanes multiply(lanes a, lanes b) { EACH(vmulq_f32(a.val[q], b.val[q])); }
INLINE lanes fused(lanes a, lanes b, lanes c) { EACH(vfmaq_f32(c.val[q], a.val[q], b.val[q])); }

#else

#define TILE 4
typedef struct {
    float at[NUM_LANES];
} lanes;

#define EACH(expression)                                                                           \
    lanes out;                                                                                     \
    for (int i = 0; i < NUM_LANES; i++) out.at[i] = (expression);                                  \
    return out
INLINE lanes load(const float *from) { EACH(from[i]); }
INLINE void store(float *to, lanes a) { memcpy(to, a.at, sizeof a.at); }
INLINE lanes load_quarter(const float *from) { EACH(i < NUM_LANES / 4 ? from[i] : 0.0f); }
INLINE void store_quarter(float *to, lanes a) { memcpy(to, a.at, sizeof a.at / 4); }
INLINE lanes spread(float a) { EACH(a); }
INLINE lanes add(lanes a, lanes b) { EACH(a.at[i] + b.at[i]); }
INLINE lanes multiply(lanes a, lanes b) { EACH(a.at[i] * b.at[i]); }
INLINE lanes fused(lanes a, lanes b, lanes c) { EACH(fmaf(a.at[i], b.at[i], c.at[i])); }

#endif

INLINE lanes zero(void) { return spread(0.0f); }
INLINE int least(int64_t a, int64_t b) { return (int)(a < b ? a : b); }

/* Sums of the lanes of each of 16: lane j of what returns is the sum of a[j].
 * The tree: lane i with i + 8, then with i + 4, i + 2, i + 1. */
#if defined(USE_AVX512)

INLINE lanes sum_each(const lanes a[NUM_LANES]) {
    lanes quarter[4];
    UNROLL for (int m = 0; m < 4; m++) {
        lanes p = add(_mm512_shuffle_f32x4(a[m], a[4 + m], 0x44),
                      _mm512_shuffle_f32x4(a[m], a[4 + m], 0xEE));
        lanes q = add(_mm512_shuffle_f32x4(a[8 + m], a[12 + m], 0x44),
                      _mm512_shuffle_f32x4(a[8 + m], a[12 + m], 0xEE));
        quarter[m] = add(_mm512_shuffle_f32x4(p, q, 0x88), _mm512_shuffle_f32x4(p, q, 0xDD));
    }
    lanes p = add(_mm512_shuffle_ps(quarter[0], quarter[1], 0x44),
                  _mm512_shuffle_ps(quarter[0], quarter[1], 0xEE));
    lanes q = add(_mm512_shuffle_ps(quarter[2], quarter[3], 0x44),
                  _mm512_shuffle_ps(quarter[2], quarter[3], 0xEE));
    return add(_mm512_shuffle_ps(p, q, 0x88), _mm512_shuffle_ps(p, q, 0xDD));
}

#elif defined(USE_AVX2)

INLINE __m256 sum_each_of_8(const lanes a[8]) {
    __m256 half[4];
    UNROLL for (int m = 0; m < 4; m++) {
        __m256 p = _mm256_add_ps(a[m].low, a[m].high);
        __m256 q = _mm256_add_ps(a[4 + m].low, a[4 + m].high);
        half[m] = _mm256_add_ps(_mm256_permute2f128_ps(p, q, 0x20),
                                _mm256_permute2f128_ps(p, q, 0x31));
    }
    __m256 p = _mm256_add_ps(_mm256_shuffle_ps(half[0], half[1], 0x44),
                             _mm256_shuffle_ps(half[0], half[1], 0xEE));
    __m256 q = _mm256_add_ps(_mm256_shuffle_ps(half[2], half[3], 0x44),
                             _mm256_shuffle_ps(half[2], half[3], 0xEE));
    return _mm256_add_ps(_mm256_shuffle_ps(p, q, 0x88), _mm256_shuffle_ps(p, q, 0xDD));
}
INLINE lanes sum_each(const lanes a[NUM_LANES]) {
    return (lanes){sum_each_of_8(a), sum_each_of_8(a + 8)};
}

#elif defined(USE_NEON)

INLINE float32x4_t add_quarters(lanes a) {
    return vaddq_f32(vaddq_f32(a.val[0], a.val[2]), vaddq_f32(a.val[1], a.val[3]));
}
INLINE float32x4_t add_halves(float32x4_t a, float32x4_t b) {
    return vaddq_f32(vcombine_f32(vget_low_f32(a), vget_low_f32(b)),
                     vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
}
INLINE lanes sum_each(const lanes a[NUM_LANES]) {
    lanes out;
    UNROLL for (int q = 0; q < 4; q++) {
        const lanes *of = a + 4 * q;
        out.val[q] = vpaddq_f32(add_halves(add_quarters(of[0]), add_quarters(of[1])),
                                add_halves(add_quarters(of[2]), add_quarters(of[3])));
    }
    return out;
}

#else

APART lanes sum_each(const lanes a[NUM_LANES]) {
    lanes out;
    for (int j = 0; j < NUM_LANES; j++) {
        lanes tree = a[j];
        for (int width = 8; width > 0; width /= 2)
            for (int i = 0; i < width; i++) tree.at[i] = tree.at[i] + tree.at[i + width];
        out.at[j] = tree.at[0];
    }
    return out;
}

#endif

/* Add the sums of `count` <= 16 lanes to consecutive numbers, or set these if they are the first. */
APART void put_sums(float *to, lanes a[NUM_LANES], int count, int is_first) {
    if (count == NUM_LANES) {
        lanes sums = sum_each(a);
        store(to, is_first ? sums : add(load(to), sums));
        return;
    }
    float sums[NUM_LANES];
    for (int j = count; j < NUM_LANES; j++) a[j] = zero();
    store(sums, sum_each(a));
    for (int j = 0; j < count; j++) to[j] = is_first ? sums[j] : to[j] + sums[j];
}

/* The 16 x 16 matrix whose rows are the lanes, the other way round. */
#if defined(USE_AVX512)

INLINE void transpose(lanes a[NUM_LANES]) {
    lanes b[NUM_LANES];
    UNROLL for (int i = 0; i < 16; i += 4) {
        lanes p = _mm512_unpacklo_ps(a[i], a[i + 1]), q = _mm512_unpackhi_ps(a[i], a[i + 1]);
        lanes r = _mm512_unpacklo_ps(a[i + 2], a[i + 3]), s = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
        b[i] = _mm512_shuffle_ps(p, r, 0x44);
        b[i + 1] = _mm512_shuffle_ps(p, r, 0xEE);
        b[i + 2] = _mm512_shuffle_ps(q, s, 0x44);
        b[i + 3] = _mm512_shuffle_ps(q, s, 0xEE);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        lanes p = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
        lanes q = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xDD);
        lanes r = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
        lanes s = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xDD);
        a[i] = _mm512_shuffle_f32x4(p, r, 0x88);
        a[i + 4] = _mm512_shuffle_f32x4(q, s, 0x88);
        a[i + 8] = _mm512_shuffle_f32x4(p, r, 0xDD);
        a[i + 12] = _mm512_shuffle_f32x4(q, s, 0xDD);
    }
}

#elif defined(USE_AVX2)

INLINE void transpose_8(__m256 *const a[8]) {
    __m256 b[8];
    UNROLL for (int i = 0; i < 8; i += 4) {
        __m256 p = _mm256_unpacklo_ps(*a[i], *a[i + 1]), q = _mm256_unpackhi_ps(*a[i], *a[i + 1]);
        __m256 r = _mm256_unpacklo_ps(*a[i + 2], *a[i + 3]);
        __m256 s = _mm256_unpackhi_ps(*a[i + 2], *a[i + 3]);
        b[i] = _mm256_shuffle_ps(p, r, 0x44);
        b[i + 1] = _mm256_shuffle_ps(p, r, 0xEE);
        b[i + 2] = _mm256_shuffle_ps(q, s, 0x44);
        b[i + 3] = _mm256_shuffle_ps(q, s, 0xEE);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        *a[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        *a[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}
INLINE void transpose(lanes a[NUM_LANES]) {
    UNROLL for (int half = 0; half < 2; half++) {
        lanes *of = a + 8 * half;
        transpose_8((__m256 *const[8]){&of[0].low, &of[1].low, &of[2].low, &of[3].low, &of[4].low,
                                       &of[5].low, &of[6].low, &of[7].low});
        transpose_8((__m256 *const[8]){&of[0].high, &of[1].high, &of[2].high, &of[3].high,
                                       &of[4].high, &of[5].high, &of[6].high, &of[7].high});
    }
    UNROLL for (int i = 0; i < 8; i++) {
        __m256 other = a[i].high;
        a[i].high = a[i + 8].low;
        a[i + 8].low = other;
    }
}

#else

INLINE void transpose(lanes a[NUM_LANES]) {
    float of[NUM_LANES][NUM_LANES], turned[NUM_LANES][NUM_LANES];
    for (int i = 0; i < NUM_LANES; i++) store(of[i], a[i]);
    for (int i = 0; i < NUM_LANES; i++)
        for (int j = 0; j < NUM_LANES; j++) turned[j][i] = of[i][j];
    for (int i = 0; i < NUM_LANES; i++) a[i] = load(turned[i]);
}

#endif

/* Take samples apart: [samples <= 16, columns] -> lanes [columns], 0 where there is no sample.
 * `row` and `step` are the distances of samples and of lanes in numbers. */
APART void rows_to_lanes(const float *from, ptrdiff_t row, int samples, int columns, float *to,
                         ptrdiff_t step) {
    int column = 0;
    for (; column + NUM_LANES <= columns; column += NUM_LANES) {
        lanes block[NUM_LANES];
        UNROLL for (int b = 0; b < NUM_LANES; b++)
            block[b] = b < samples ? load(from + b * row + column) : zero();
        transpose(block);
        UNROLL for (int j = 0; j < NUM_LANES; j++) store(to + (column + j) * step, block[j]);
    }
    for (; column < columns; column++)
        for (int b = 0; b < NUM_LANES; b++)
            to[column * step + b] = b < samples ? from[b * row + column] : 0.0f;
}

/* Put samples together again: lanes [columns] -> [samples <= 16, columns]. */
APART void lanes_to_rows(const float *from, ptrdiff_t step, int samples, int columns, float *to,
                         ptrdiff_t row) {
    int column = 0;
    for (; column + NUM_LANES <= columns; column += NUM_LANES) {
        lanes block[NUM_LANES];
        UNROLL for (int j = 0; j < NUM_LANES; j++) block[j] = load(from + (column + j) * step);
        transpose(block);
        UNROLL for (int b = 0; b < NUM_LANES; b++)
            if (b < samples) store(to + b * row + column, block[b]);
    }
    for (; column < columns; column++)
        for (int b = 0; b < samples; b++) to[b * row + column] = from[column * step + b];
}

#endif
