/* One decode step of all layers for rows that are all audio, on a CPU; see native.py.
 *
 * A step of a small model is mostly the overhead of its operations, one of a large model the reading of its weights. Here
 * a step is one parallel region, and each weight is read once for all rows, as bfloat16 where that is what it holds.
 * A row is computed in the same order however many there are, so its numbers do not depend on the others.
 *
 * Vectors are GCC's and Clang's own: sixteen floats, whatever the processor makes of them.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define BLOCK 8 /* rows that are computed together */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t half __attribute__((vector_size(2 * LANES), aligned(2)));

typedef struct {
    const void *weight; /* [out, in], float or bfloat16 */
    int64_t out, in;
} matrix;

typedef struct {
    const float *before, *between; /* norms [width] */
    matrix query, key, value, output, gate, up, down;
} layer;

typedef struct {
    int64_t num_layers, width, inner, heads, groups, head_width, is_half;
    const layer *layers;
    const float *last; /* norm [width] */
    matrix head;
    float eps;
} model;

typedef struct {
    float *state; /* [layer, 2, row, group, position, head_width] */
    int64_t of_layer, of_value, of_row, of_group;
} cache;

static inline vec load(const void *weight, int64_t place, int64_t is_half) {
    if (!is_half) return *(const vec *)((const float *)weight + place);
    bits wide = __builtin_convertvector(*(const half *)((const uint16_t *)weight + place), bits) << 16;
    vec value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Halves, quarters and eighths of a vector added up; inlined, its copies would keep sums out of registers. */
static __attribute__((noinline)) float sum(vec v) {
    vec8 a, b;
    memcpy(&a, &v, sizeof a);
    memcpy(&b, (char *)&v + sizeof a, sizeof b);
    a += b;
    vec4 c, d;
    memcpy(&c, &a, sizeof c);
    memcpy(&d, (char *)&a + sizeof c, sizeof d);
    c += d;
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Output o of `count` rows: result[r * stride] = weight[o] . x[r]. The weights of one output lie in a line, and are read
 * as fast as memory gives them; several outputs at once were half as fast. */
static inline __attribute__((always_inline)) void together(
    const matrix *m, int64_t is_half, const float *x, int count, int64_t o, float *result, int64_t stride) {
    vec total[BLOCK] = {{0}};
    for (int64_t i = 0; i < m->in; i += LANES) {
        vec w = load(m->weight, o * m->in + i, is_half);
        for (int r = 0; r < count; r++) total[r] += w * *(const vec *)(x + r * m->in + i);
    }
    for (int r = 0; r < count; r++) result[r * stride] = sum(total[r]);
}

/* All rows; the constants let a compiler keep sums in registers. */
static inline __attribute__((always_inline)) void all(
    const matrix *m, int64_t is_half, const float *x, int64_t rows, int64_t o, float *result, int64_t stride) {
    int64_t r = 0;
    for (; r + BLOCK <= rows; r += BLOCK) together(m, is_half, x + r * m->in, BLOCK, o, result + r * stride, stride);
    for (; r + 4 <= rows; r += 4) together(m, is_half, x + r * m->in, 4, o, result + r * stride, stride);
    x += r * m->in;
    result += r * stride;
    if (rows - r == 3) together(m, is_half, x, 3, o, result, stride);
    if (rows - r == 2) together(m, is_half, x, 2, o, result, stride);
    if (rows - r == 1) together(m, is_half, x, 1, o, result, stride);
}

static void dots(const matrix *m, int64_t is_half, const float *x, int64_t rows, int64_t o, float *result, int64_t stride) {
    if (is_half) all(m, 1, x, rows, o, result, stride);
    else all(m, 0, x, rows, o, result, stride);
}

/* The same, added to rows x [R, m->out]. */
static void add(const matrix *m, int64_t is_half, const float *from, int64_t rows, int64_t o, float *few, float *x) {
    dots(m, is_half, from, rows, o, few, 1);
    for (int64_t r = 0; r < rows; r++) x[r * m->out + o] += few[r];
}

/* Root mean square norm of rows [R, width]; every thread makes its own. */
static void norm(const float *x, const float *weight, int64_t rows, int64_t width, float eps, float *result) {
    for (int64_t r = 0; r < rows; r++) {
        vec total = {0};
        for (int64_t i = 0; i < width; i += LANES) {
            vec v = *(const vec *)(x + r * width + i);
            total += v * v;
        }
        float scale = 1 / sqrtf(sum(total) / width + eps);
        for (int64_t i = 0; i < width; i += LANES)
            *(vec *)(result + r * width + i) = *(const vec *)(x + r * width + i) * scale * *(const vec *)(weight + i);
    }
}

/* x * a + (x, halves exchanged) * b, in place. */
static void turn(float *x, const float *a, const float *b, int64_t width) {
    int64_t middle = width / 2;
    for (int64_t i = 0; i < middle; i++) {
        float low = x[i], high = x[middle + i];
        x[i] = low * a[i] + high * b[i];
        x[middle + i] = high * a[middle + i] + low * b[middle + i];
    }
}

/* One group of heads of one row: its key and value are kept, its queries see all positions up to this one. */
static void attend(
    const model *m, const cache *c, int64_t l, int64_t row, int64_t group, int64_t position, const float *turns,
    const float *query, const float *key, const float *value, float *scores, float *result) {
    int64_t h = m->head_width, each = m->heads / m->groups;
    float *keys = c->state + l * c->of_layer + row * c->of_row + group * c->of_group, *values = keys + c->of_value;
    const float *a = turns + position * 2 * h, *b = a + h;
    float *own = keys + position * h;
    memcpy(own, key, h * sizeof(float));
    turn(own, a, b, h);
    memcpy(values + position * h, value, h * sizeof(float));
    for (int64_t n = group * each; n < (group + 1) * each; n++) {
        float turned[h], *out = result + n * h, most = -INFINITY, total = 0;
        memcpy(turned, query + n * h, h * sizeof(float));
        turn(turned, a, b, h);
        for (int64_t t = 0; t <= position; t++) {
            vec dot = {0};
            for (int64_t i = 0; i < h; i += LANES) dot += *(const vec *)(turned + i) * *(const vec *)(keys + t * h + i);
            scores[t] = sum(dot) / sqrtf(h);
            most = scores[t] > most ? scores[t] : most;
        }
        memset(out, 0, h * sizeof(float));
        for (int64_t t = 0; t <= position; t++) {
            float share = expf(scores[t] - most);
            total += share;
            for (int64_t i = 0; i < h; i += LANES) *(vec *)(out + i) += share * *(const vec *)(values + t * h + i);
        }
        for (int64_t i = 0; i < h; i += LANES) *(vec *)(out + i) /= total;
    }
}

/* Floats of working memory that `step` needs. */
int64_t workspace(const model *m, int64_t rows, int64_t threads, int64_t positions) {
    int64_t heads = (m->heads + 2 * m->groups) * m->head_width, seen = m->heads * m->head_width;
    return rows * (heads + seen + m->inner) + threads * (rows * m->width + positions + rows);
}

/* Rows x [R, width], changed in place, each at its position, to logits [R, head.out].
 * turns [T, 2, head_width] is of `runner.turning`. */
void step(
    const model *m, const cache *c, int64_t rows, const int64_t *positions, const float *turns, float *x, float *logits,
    float *work, int64_t threads, int64_t num_positions) {
    const int64_t q = m->heads * m->head_width, k = m->groups * m->head_width, width = m->width, is_half = m->is_half;
    float *query = work, *key = query + rows * q, *value = key + rows * k, *seen = value + rows * k;
    float *inner = seen + rows * q, *own = inner + rows * m->inner;
    const int64_t own_size = rows * width + num_positions + rows;
#pragma omp parallel num_threads(threads)
    {
        int64_t number = 0;
#ifdef _OPENMP
        extern int omp_get_thread_num(void);
        number = omp_get_thread_num();
#endif
        float *mine = own + number * own_size, *scores = mine + rows * width, *few = scores + num_positions;
        for (int64_t l = 0; l < m->num_layers; l++) {
            const layer *a = m->layers + l;
            norm(x, a->before, rows, width, m->eps, mine);
#pragma omp for schedule(static) nowait
            for (int64_t o = 0; o < q; o++) dots(&a->query, is_half, mine, rows, o, query + o, q);
#pragma omp for schedule(static) nowait
            for (int64_t o = 0; o < k; o++) dots(&a->key, is_half, mine, rows, o, key + o, k);
#pragma omp for schedule(static)
            for (int64_t o = 0; o < k; o++) dots(&a->value, is_half, mine, rows, o, value + o, k);
#pragma omp for schedule(dynamic)
            for (int64_t one = 0; one < rows * m->groups; one++) {
                int64_t r = one / m->groups, g = one % m->groups, h = m->head_width;
                attend(m, c, l, r, g, positions[r], turns, query + r * q, key + r * k + g * h, value + r * k + g * h,
                       scores, seen + r * q);
            }
#pragma omp for schedule(static)
            for (int64_t o = 0; o < width; o++) add(&a->output, is_half, seen, rows, o, few, x);
            norm(x, a->between, rows, width, m->eps, mine);
#pragma omp for schedule(static)
            for (int64_t o = 0; o < m->inner; o++) {
                dots(&a->gate, is_half, mine, rows, o, few, 1);
                dots(&a->up, is_half, mine, rows, o, inner + o, m->inner);
                for (int64_t r = 0; r < rows; r++) inner[r * m->inner + o] *= few[r] / (1 + expf(-few[r]));
            }
#pragma omp for schedule(static)
            for (int64_t o = 0; o < width; o++) add(&a->down, is_half, inner, rows, o, few, x);
        }
        norm(x, m->last, rows, width, m->eps, mine);
#pragma omp for schedule(static)
        for (int64_t o = 0; o < m->head.out; o++) dots(&m->head, is_half, mine, rows, o, logits + o, m->head.out);
    }
}
