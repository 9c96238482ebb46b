/* Matrices in panels of two vectors of outputs, one input after another: a product needs no sums across a vector, and
 * memory is read in a line.
 *
 * A row is computed in the same order whatever is beside it, so its numbers do not depend on the others.
 */

#pragma once

#include "vectors.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define BLOCK 12 /* rows that share a panel: so many sums as there are registers */
#else
#define BLOCK 6
#endif
#define PANEL (2 * LANES) /* outputs */
#define FEW 2             /* rows or fewer, for which two panels are read at once: one has too few sums to keep busy */

typedef struct {
    /* [out / PANEL, in, PANEL], the last one filled up with zeros: float, or bfloat16 with outputs o and o + LANES
     * beside each other, which are taken apart by a shift and a mask. */
    const void *panels;
    int64_t out, in;
} matrix;

/* Two vectors of weights of one input. */
static inline __attribute__((always_inline)) void load(const void *weight, int64_t place, int64_t is_half, vec *w) {
    if (!is_half) {
        w[0] = *(const vec *)((const float *)weight + place);
        w[1] = *(const vec *)((const float *)weight + place + LANES);
        return;
    }
    ints words = *(const ints *)((const uint16_t *)weight + place), low = words << 16, high = words & -65536;
    memcpy(&w[0], &low, sizeof low);
    memcpy(&w[1], &high, sizeof high);
}

/* `count` rows x [count, in] times `panels` panels, to result [count, panels * PANEL]; with is_last what comes behind the
 * panels is fetched meanwhile: it would come too late for the many rows that are next.
 */
static inline __attribute__((always_inline)) void product(
    const void *weight, int64_t is_half, int64_t in, const float *x, const int count, const int panels, const int is_last,
    float *result) {
    const int64_t line = PANEL * (is_half ? 2 : 4);
    const char *next = (const char *)weight + panels * in * line;
    vec total[2 * BLOCK], w[2 * FEW]; /* of a constant size, or they would not be registers */
    const int each = 2 * panels, sums = count * each;
UNROLLED
    for (int n = 0; n < sums; n++) total[n] = (vec){0};
    for (int64_t i = 0; i < in; i++) {
        if (is_last) __builtin_prefetch(next + i * line);
UNROLLED
        for (int p = 0; p < panels; p++) load(weight, (p * in + i) * PANEL, is_half, w + 2 * p);
UNROLLED
        for (int n = 0; n < sums; n++) total[n] += x[n / each * in + i] * w[n % each];
    }
UNROLLED
    for (int n = 0; n < sums; n++) *(vec *)(result + n * LANES) = total[n];
}

/* Any number of rows. The constants let a compiler keep sums in registers. */
static inline __attribute__((always_inline)) void products(
    const void *weight, int64_t is_half, int64_t in, const float *x, int64_t rows, const int panels, float *result) {
    if (panels == 2) {
        if (rows == 1) product(weight, is_half, in, x, 1, 2, 0, result);
        if (rows == 2) product(weight, is_half, in, x, 2, 2, 0, result);
        return;
    }
#define CASE(n) \
    case n: \
        if (left > 1) product(weight, is_half, in, x, n, 1, 0, result); \
        else product(weight, is_half, in, x, n, 1, 1, result); \
        break;
    for (int64_t left = (rows + BLOCK - 1) / BLOCK; left > 0; left--) {
        int64_t count = (rows + left - 1) / left; /* alike: few rows have too few sums to keep busy */
        switch (count) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if BLOCK > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
        rows -= count, x += count * in, result += count * PANEL;
    }
#undef CASE
}

/* A matrix as many loops over its outputs: the one at hand, and how many at once. */
static int64_t width_of(int64_t rows) { return rows <= FEW ? 2 * PANEL : PANEL; }
#define MOST (4 * PANEL) /* outputs of a row at once: of gate and up */

/* Outputs from o on, `width_of(rows)` of them or what is left, to result [rows, that many]. */
static int64_t outputs(const matrix *m, int64_t is_half, const float *x, int64_t rows, int64_t o, float *result) {
    int64_t panels = rows <= FEW && o + PANEL < m->out ? 2 : 1;
    const char *weight = (const char *)m->panels + o * m->in * (is_half ? 2 : 4);
    if (is_half && panels == 2) products(weight, 1, m->in, x, rows, 2, result);
    if (is_half && panels == 1) products(weight, 1, m->in, x, rows, 1, result);
    if (!is_half && panels == 2) products(weight, 0, m->in, x, rows, 2, result);
    if (!is_half && panels == 1) products(weight, 0, m->in, x, rows, 1, result);
    return panels * PANEL;
}

/* Rows x [rows, in] times a matrix, to result [rows, out], from output o on. */
static void put(const matrix *m, int64_t is_half, const float *x, int64_t rows, int64_t o, float *few, float *result) {
    int64_t made = outputs(m, is_half, x, rows, o, few), count = least(made, m->out - o);
    for (int64_t r = 0; r < rows; r++) memcpy(result + r * m->out + o, few + r * made, count * sizeof(float));
}

/* The same, added to the result. */
static void add(const matrix *m, int64_t is_half, const float *x, int64_t rows, int64_t o, float *few, float *result) {
    int64_t made = outputs(m, is_half, x, rows, o, few), count = least(made, m->out - o);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i++) result[r * m->out + o + i] += few[r * made + i];
}
