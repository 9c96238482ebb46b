/* Vectors of the processor's width, with the vector extensions of GCC and Clang, and operations that all files use. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 24")
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));

/* The smaller of two integers. */
static inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

/* The sum across a vector. */
static inline float sum(vec v) {
    typedef float four __attribute__((vector_size(16)));
    four total = {0}, part;
    for (int i = 0; i < LANES; i += 4) {
        memcpy(&part, (float *)&v + i, sizeof part);
        total += part;
    }
    return (total[0] + total[2]) + (total[1] + total[3]);
}

/* `yes` where `is` has all bits set, `no` where it has none. */
static inline vec where(ints is, vec yes, vec no) {
    ints a, b;
    memcpy(&a, &yes, sizeof a);
    memcpy(&b, &no, sizeof b);
    a = (a & is) | (b & ~is);
    memcpy(&yes, &a, sizeof yes);
    return yes;
}

/* exp(x) with an error of 2 in 10^7: a power of two times a polynomial in the remainder of x. */
static inline vec exponential(vec x) {
    x = where(x < -87.0f, (vec){0} - 87.0f, x);
    x = where(x > 88.0f, (vec){0} + 88.0f, x);
    vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds: floats near 1.5 * 2^23 have no fraction bits */
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.3888889e-3f + 8.3333333e-3f;
    p = r * p + 4.1666667e-2f;
    p = r * p + 1.6666667e-1f;
    p = r * p + 0.5f;
    p = r * p + 1.0f;
    p = r * p + 1.0f;
    ints bits = (__builtin_convertvector(n, ints) + 127) << 23;
    vec power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}
