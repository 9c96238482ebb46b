/* Matrices packed in panels of two vectors of outputs, input by input: a product needs no sum across a vector, and memory
 * is read sequentially.
 *
 * The order of summation of a row is fixed, so its result does not depend on the other rows of the batch.
 */

#pragma once

#include "vectors.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define BLOCK 12 /* rows multiplied with a panel at once: as many sums as fit into registers */
#else
#define BLOCK 6
#endif
#define PANEL (2 * LANES) /* outputs */
#define FEW 2             /* at most this many rows read two panels at once: one panel does not fill the pipeline */

typedef struct {
    /* [out / PANEL, in, PANEL], the last panel padded with zeros: float, or bfloat16 with outputs o and o + LANES
     * interleaved, which a shift and a mask separate. */
    const void *panels;
    int64_t out, in;
} matrix;

/* Loads the two vectors of weights of one input. */
static inline __attribute__((always_inline)) void load(const void *weight, int64_t offset, int64_t is_bfloat16, vec *w) {
    if (!is_bfloat16) {
        w[0] = *(const vec *)((const float *)weight + offset);
        w[1] = *(const vec *)((const float *)weight + offset + LANES);
        return;
    }
    ints words = *(const ints *)((const uint16_t *)weight + offset), low = words << 16, high = words & -65536;
    memcpy(&w[0], &low, sizeof low);
    memcpy(&w[1], &high, sizeof high);
}

/* Multiplies `count` rows x [count, in] with `panels` panels, to result [count, panels * PANEL]. With is_last, prefetches
 * the panels that follow: the next rows would otherwise wait for them.
 */
static inline __attribute__((always_inline)) void product(
    const void *weight, int64_t is_bfloat16, int64_t in, const float *x, const int count, const int panels,
    const int is_last, float *result) {
    const int64_t line = PANEL * (is_bfloat16 ? 2 : 4);
    const char *next = (const char *)weight + panels * in * line;
    vec total[2 * BLOCK], w[2 * FEW]; /* the sizes are constants, so that the compiler keeps them in registers */
    const int each = 2 * panels, sums = count * each;
UNROLLED
    for (int n = 0; n < sums; n++) total[n] = (vec){0};
    for (int64_t i = 0; i < in; i++) {
        if (is_last) __builtin_prefetch(next + i * line);
UNROLLED
        for (int p = 0; p < panels; p++) load(weight, (p * in + i) * PANEL, is_bfloat16, w + 2 * p);
UNROLLED
        for (int n = 0; n < sums; n++) total[n] += x[n / each * in + i] * w[n % each];
    }
UNROLLED
    for (int n = 0; n < sums; n++) *(vec *)(result + n * LANES) = total[n];
}

/* `product` for any number of rows. Constant arguments let the compiler keep the sums in registers. */
static inline __attribute__((always_inline)) void products(
    const void *weight, int64_t is_bfloat16, int64_t in, const float *x, int64_t rows, const int panels, float *result) {
    if (panels == 2) {
        if (rows == 1) product(weight, is_bfloat16, in, x, 1, 2, 0, result);
        if (rows == 2) product(weight, is_bfloat16, in, x, 2, 2, 0, result);
        return;
    }
#define CASE(n) \
    case n: \
        if (left > 1) product(weight, is_bfloat16, in, x, n, 1, 0, result); \
        else product(weight, is_bfloat16, in, x, n, 1, 1, result); \
        break;
    for (int64_t left = (rows + BLOCK - 1) / BLOCK; left > 0; left--) {
        int64_t count = (rows + left - 1) / left; /* equal blocks: a block of few rows could not fill the pipeline */
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

/* Outputs that one iteration of a loop over the outputs of a matrix computes. */
static int64_t outputs_at_once(int64_t rows) { return rows <= FEW ? 2 * PANEL : PANEL; }
#define BUFFERED (4 * PANEL) /* buffered outputs of a row: two panels each of gate and up */

/* Computes outputs from o on, `outputs_at_once(rows)` or as many panels as remain, to result [rows, N]. Returns N. */
static int64_t multiply(const matrix *m, int64_t is_bfloat16, const float *x, int64_t rows, int64_t o, float *result) {
    int64_t panels = rows <= FEW && o + PANEL < m->out ? 2 : 1;
    const char *weight = (const char *)m->panels + o * m->in * (is_bfloat16 ? 2 : 4);
    if (is_bfloat16 && panels == 2) products(weight, 1, m->in, x, rows, 2, result);
    if (is_bfloat16 && panels == 1) products(weight, 1, m->in, x, rows, 1, result);
    if (!is_bfloat16 && panels == 2) products(weight, 0, m->in, x, rows, 2, result);
    if (!is_bfloat16 && panels == 1) products(weight, 0, m->in, x, rows, 1, result);
    return panels * PANEL;
}

/* A product is computed in tiles: up to GROUP rows, and as many outputs as `multiply` computes. */
#define GROUP (4 * BLOCK) /* rows */

typedef struct {
    int64_t first, rows, o; /* rows from `first` on, outputs from `o` on */
} tile;

/* The number of tiles of a product of `rows` rows with a matrix of `out` outputs. */
static inline int64_t num_tiles(int64_t rows, int64_t out) {
    int64_t outputs = outputs_at_once(rows);
    return (rows + GROUP - 1) / GROUP * ((out + outputs - 1) / outputs);
}

/* Tiles in the order of their rows: those of a group of rows are consecutive. Groups have equal numbers of rows. */
static inline tile find_tile(int64_t rows, int64_t out, int64_t number) {
    int64_t outputs = outputs_at_once(rows), each = (out + outputs - 1) / outputs, groups = (rows + GROUP - 1) / GROUP;
    int64_t group = number / each, first = rows * group / groups;
    return (tile){first, rows * (group + 1) / groups - first, number % each * outputs};
}

/* Computes one tile of the product of rows x [rows, in] with a matrix, to result [rows, out]; `buffer` holds the tile. */
static inline void multiply_to(
    const matrix *m, int64_t is_bfloat16, const float *x, int64_t rows, int64_t number, float *buffer, float *result) {
    const tile t = find_tile(rows, m->out, number);
    int64_t stride = multiply(m, is_bfloat16, x + t.first * m->in, t.rows, t.o, buffer), count = minimum(stride, m->out - t.o);
    result += t.first * m->out + t.o;
    for (int64_t r = 0; r < t.rows; r++) memcpy(result + r * m->out, buffer + r * stride, count * sizeof(float));
}

/* `multiply_to` that adds to the result. */
static inline void multiply_add(
    const matrix *m, int64_t is_bfloat16, const float *x, int64_t rows, int64_t number, float *buffer, float *result) {
    const tile t = find_tile(rows, m->out, number);
    int64_t stride = multiply(m, is_bfloat16, x + t.first * m->in, t.rows, t.o, buffer), count = minimum(stride, m->out - t.o);
    result += t.first * m->out + t.o;
    for (int64_t r = 0; r < t.rows; r++)
        for (int64_t i = 0; i < count; i++) result[r * m->out + i] += buffer[r * stride + i];
}
