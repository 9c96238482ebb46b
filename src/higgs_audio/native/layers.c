/* All layers for rows of a batch, on a CPU; see engine/trunk.py.
 *
 * A step of a small model is mostly the overhead of its operations, one of a large model the reading of its weights. Here
 * all layers are one parallel region, and each weight is read once for a block of rows, as bfloat16 where that is what it
 * holds. A row is computed in the same order whatever is beside it, so its numbers do not depend on the others.
 */

#include "matrix.h"

typedef struct {
    const float *before, *between; /* norms [width] */
    matrix gate, up, down;
} feed;

typedef struct {
    matrix query, key, value, output;
    feed text, audio;
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

/* Positions of sequences, in any order: text first, then audio; the last `num_read` are read out. */
typedef struct {
    int64_t num_rows, num_text, num_read;
    const int64_t *sequences, *positions; /* [num_rows] rows of the cache, and places in them */
    const float *turns;                   /* [positions, 2, head_width], of `runner.turning` */
    /* First positions of rows that lie elsewhere too, where several rows read them: state [layer, 2, group, size,
     * head_width], of which a row shares some; 0 of them, or no pointers at all, where it has its own alone. */
    const float *const *shared;
    const int64_t *num_shared, *sizes;
} batch;

/* up(x) times the SiLU of gate(x), from output o on. */
static void gated(const feed *f, int64_t is_half, const float *x, int64_t rows, int64_t o, float *few, float *result) {
    float *gate = few, *up = few + rows * width_of(rows);
    int64_t made = outputs(&f->gate, is_half, x, rows, o, gate), count = least(made, f->gate.out - o);
    outputs(&f->up, is_half, x, rows, o, up);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i += LANES) {
            vec g = *(const vec *)(gate + r * made + i), u = *(const vec *)(up + r * made + i);
            *(vec *)(result + r * f->gate.out + o + i) = u * g / (1.0f + exponential(-g));
        }
}

/* Root mean square norm of a row [width]. */
static void norm(const float *x, const float *weight, int64_t width, float eps, float *result) {
    vec total = {0};
    for (int64_t i = 0; i < width; i += LANES) total += *(const vec *)(x + i) * *(const vec *)(x + i);
    float scale = 1 / sqrtf(sum(total) / width + eps);
    for (int64_t i = 0; i < width; i += LANES)
        *(vec *)(result + i) = *(const vec *)(x + i) * scale * *(const vec *)(weight + i);
}

/* x * a + (x, halves exchanged) * b, times a scale, in place. */
static void turn(float *x, const float *turns, int64_t width, float scale) {
    const float *a = turns, *b = turns + width;
    int64_t middle = width / 2;
    for (int64_t i = 0; i < middle; i++) {
        float low = x[i], high = x[middle + i];
        x[i] = (low * a[i] + high * b[i]) * scale;
        x[middle + i] = (high * a[middle + i] + low * b[middle + i]) * scale;
    }
}

/* Keys and values of one head: of the first positions, which other rows read too, and of those from there on. */
typedef struct {
    const float *keys, *values;
    int64_t stop;
} span;

/* Values of two spans weighed and added up, for `count` vectors of each from i on. */
static inline __attribute__((always_inline)) void weigh(
    const float *shares, const span *spans, int64_t i, int64_t width, const int count, float scale, float *out) {
    vec total[count];
    for (int n = 0; n < count; n++) total[n] = (vec){0};
    for (int64_t s = 0, t = 0; s < 2; s++)
        for (; t < spans[s].stop; t++)
            for (int n = 0; n < count; n++)
                total[n] += shares[t] * *(const vec *)(spans[s].values + t * width + i + n * LANES);
    for (int n = 0; n < count; n++) *(vec *)(out + i + n * LANES) = total[n] * scale;
}

/* What a query [width], scaled, sees of two spans; scores has room for a vector more. */
static void attend(const float *query, const span *spans, int64_t width, float *scores, float *out) {
    const int64_t positions = spans[1].stop;
    float most = -INFINITY;
    for (int64_t s = 0, t = 0; s < 2; s++)
        for (; t < spans[s].stop; t++) {
            const float *key = spans[s].keys + t * width;
            vec dot = {0};
            for (int64_t i = 0; i < width; i += LANES) dot += *(const vec *)(query + i) * *(const vec *)(key + i);
            scores[t] = sum(dot);
            most = scores[t] > most ? scores[t] : most;
        }
    for (int64_t t = positions; t < positions + LANES; t++) scores[t] = -INFINITY;
    vec shares = {0};
    for (int64_t t = 0; t < positions; t += LANES) shares += *(vec *)(scores + t) = exponential(*(vec *)(scores + t) - most);
    float scale = 1 / sum(shares);
    int64_t i = 0;
    for (; i + 8 * LANES <= width; i += 8 * LANES) weigh(scores, spans, i, width, 8, scale, out);
    for (; i + 4 * LANES <= width; i += 4 * LANES) weigh(scores, spans, i, width, 4, scale, out);
    for (; i < width; i += LANES) weigh(scores, spans, i, width, 1, scale, out);
}

/* What a row sees in a layer, for one of its groups of heads. */
static void find(const model *m, const cache *c, const batch *b, int64_t l, int64_t r, int64_t g, span *spans) {
    int64_t stop = b->positions[r] + 1, known = b->shared && b->shared[r] ? least(b->num_shared[r], stop) : 0;
    const float *own = c->state + l * c->of_layer + b->sequences[r] * c->of_row + g * c->of_group;
    spans[1] = (span){own, own + c->of_value, stop};
    spans[0] = (span){own, own, known};
    if (!known) return;
    int64_t of_group = b->sizes[r] * m->head_width, of_value = m->groups * of_group;
    spans[0].keys = b->shared[r] + l * 2 * of_value + g * of_group;
    spans[0].values = spans[0].keys + of_value;
}

/* Keys and values of a row in a group of heads; kept, and its queries turned. */
static void keep(
    const model *m, const batch *b, int64_t r, int64_t group, float *keys, float *values, float *query, const float *key,
    const float *value) {
    int64_t h = m->head_width, each = m->heads / m->groups, place = b->positions[r] * h;
    const float *turns = b->turns + 2 * place;
    memcpy(keys + place, key + (r * m->groups + group) * h, h * sizeof(float));
    memcpy(values + place, value + (r * m->groups + group) * h, h * sizeof(float));
    turn(keys + place, turns, h, 1);
    for (int64_t n = group * each; n < (group + 1) * each; n++) turn(query + (r * m->heads + n) * h, turns, h, 1 / sqrtf(h));
}

/* Floats of working memory that `forward` needs where rows see up to so many positions. */
int64_t workspace(const model *m, int64_t rows, int64_t threads, int64_t positions) {
    int64_t heads = (2 * m->heads + 2 * m->groups) * m->head_width;
    return rows * (heads + m->width + m->inner) + threads * (rows * MOST + positions + LANES);
}

/* Rows x [num_rows, width], changed in place; of the last num_read logits [num_read, head.out]. */
void forward(
    const model *m, const cache *c, const batch *b, float *x, float *logits, float *work, int64_t threads, int64_t positions) {
    const int64_t rows = b->num_rows, text = b->num_text, audio = rows - text, width = m->width, is_half = m->is_half;
    const int64_t h = m->head_width, q = m->heads * h, k = m->groups * h, each = m->heads / m->groups;
    float *query = work, *seen = query + rows * q, *key = seen + rows * q, *value = key + rows * k;
    float *normed = value + rows * k, *inner = normed + rows * width, *own = inner + rows * m->inner;
#pragma omp parallel num_threads(threads)
    {
        const int64_t number = thread_number();
        float *scores = own + number * (rows * MOST + positions + LANES), *few = scores + positions + LANES;
        for (int64_t l = 0; l < m->num_layers; l++) {
            const layer *a = m->layers + l;
            float *state = c->state + l * c->of_layer;
#define EACH_OUTPUT(count, out) _Pragma("omp for schedule(static) nowait") for (int64_t o = 0; o < (out); o += width_of(count))
#define BARRIER _Pragma("omp barrier")
#pragma omp for schedule(static)
            for (int64_t r = 0; r < rows; r++)
                norm(x + r * width, r < text ? a->text.before : a->audio.before, width, m->eps, normed + r * width);
            EACH_OUTPUT(rows, q) put(&a->query, is_half, normed, rows, o, few, query);
            EACH_OUTPUT(rows, k) put(&a->key, is_half, normed, rows, o, few, key);
            EACH_OUTPUT(rows, k) put(&a->value, is_half, normed, rows, o, few, value);
            BARRIER
#pragma omp for schedule(static)
            for (int64_t one = 0; one < rows * m->groups; one++) {
                int64_t r = one / m->groups, g = one % m->groups;
                float *keys = state + b->sequences[r] * c->of_row + g * c->of_group;
                keep(m, b, r, g, keys, keys + c->of_value, query, key, value);
            }
            if (l + 1 == m->num_layers && !b->num_read) break; /* nobody asks for more than its keys and values */
#pragma omp for schedule(dynamic)
            for (int64_t one = 0; one < rows * m->heads; one++) { /* head by head: rows that share follow one another */
                int64_t head = one / rows, r = one % rows;
                span spans[2];
                find(m, c, b, l, r, head / each, spans);
                attend(query + (r * m->heads + head) * h, spans, h, scores, seen + (r * m->heads + head) * h);
            }
            EACH_OUTPUT(rows, width) add(&a->output, is_half, seen, rows, o, few, x);
            BARRIER
#pragma omp for schedule(static)
            for (int64_t r = 0; r < rows; r++)
                norm(x + r * width, r < text ? a->text.between : a->audio.between, width, m->eps, normed + r * width);
            if (text) EACH_OUTPUT(text, m->inner) gated(&a->text, is_half, normed, text, o, few, inner);
            if (audio)
                EACH_OUTPUT(audio, m->inner)
                    gated(&a->audio, is_half, normed + text * width, audio, o, few, inner + text * m->inner);
            BARRIER
            if (text) EACH_OUTPUT(text, width) add(&a->text.down, is_half, inner, text, o, few, x);
            if (audio)
                EACH_OUTPUT(audio, width)
                    add(&a->audio.down, is_half, inner + text * m->inner, audio, o, few, x + text * width);
            BARRIER
        }
        const int64_t read = b->num_read, first = rows - read;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < read; r++) norm(x + (first + r) * width, m->last, width, m->eps, normed + r * width);
        if (read) EACH_OUTPUT(read, m->head.out) put(&m->head, is_half, normed, read, o, few, logits);
    }
}
