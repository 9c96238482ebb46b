/* All decoder layers for the rows of a batch, on a CPU; see engine/native_layers.py.
 *
 * In torch, overhead per operation dominates a step of a small model, and reading the weights dominates a step of a large one.
 * Here all layers are one parallel region, and each weight is read once per block of rows, in bfloat16 if that is exact. The
 * order of summation of a row is fixed, so its result does not depend on the other rows of the batch.
 */

#include "export.h"
#include "matrix.h"

/* structs.py mirrors the structures below. */

typedef struct {
    const float *input_norm, *post_attention_norm; /* [hidden_size] */
    matrix gate, up, down;
} feed_forward;

typedef struct {
    matrix query, key, value, output;
    feed_forward text, audio;
} layer;

typedef struct {
    int64_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, is_bfloat16;
    const layer *layers;
    const float *final_norm; /* [hidden_size] */
    matrix head;
    float eps;
} model;

typedef struct {
    float *state; /* [layer, 2, slot, KV head, position, head_dim] */
    int64_t layer_stride, value_stride, slot_stride, head_stride;
} kv_cache;

/* One row for each position: text rows first, then audio rows. Logits are computed for the last `num_logit_rows`. The rows of
 * a slot are in the order of their positions, without gaps. */
typedef struct {
    int64_t num_rows, num_text_rows, num_logit_rows;
    const int64_t *slots, *positions; /* [num_rows] slot of the KV cache, position in it */
    const float *rotation;            /* [positions, 2, head_dim], from `rotation_factors` of fused.py */
    /* Prefixes that several slots share and read from one copy: for each row a pointer to [layer, 2, KV head, length,
     * head_dim], the number of positions that its slot shares (0 for none), and the length. All null if no row shares any. */
    const float *const *shared;
    const int64_t *num_shared, *shared_lengths;
} batch;

EXPORT_SIZEOF(feed_forward)
EXPORT_SIZEOF(layer)
EXPORT_SIZEOF(model)
EXPORT_SIZEOF(kv_cache)
EXPORT_SIZEOF(batch)

/* Computes up(x) times the SiLU of gate(x), from output o on. */
static void gated(
    const feed_forward *f, int64_t is_bfloat16, const float *x, int64_t rows, int64_t o, float *buffer, float *result) {
    float *gate = buffer, *up = buffer + rows * outputs_at_once(rows);
    int64_t stride = multiply(&f->gate, is_bfloat16, x, rows, o, gate), count = minimum(stride, f->gate.out - o);
    multiply(&f->up, is_bfloat16, x, rows, o, up);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i += LANES) {
            vec g = *(const vec *)(gate + r * stride + i), u = *(const vec *)(up + r * stride + i);
            *(vec *)(result + r * f->gate.out + o + i) = u * g / (1.0f + exponential(-g));
        }
}

/* RMSNorm of a row [width]. */
static void norm(const float *x, const float *weight, int64_t width, float eps, float *result) {
    vec total = {0};
    for (int64_t i = 0; i < width; i += LANES) total += *(const vec *)(x + i) * *(const vec *)(x + i);
    float scale = 1 / sqrtf(sum(total) / width + eps);
    for (int64_t i = 0; i < width; i += LANES)
        *(vec *)(result + i) = *(const vec *)(x + i) * scale * *(const vec *)(weight + i);
}

/* Rotary embedding in place: x * a + (x with its halves swapped) * b, times a scale. */
static void rotate(float *x, const float *rotation, int64_t width, float scale) {
    const float *a = rotation, *b = rotation + width;
    int64_t middle = width / 2;
    for (int64_t i = 0; i < middle; i++) {
        float low = x[i], high = x[middle + i];
        x[i] = (low * a[i] + high * b[i]) * scale;
        x[middle + i] = (high * a[middle + i] + low * b[middle + i]) * scale;
    }
}

/* Keys and values of one head up to position `stop`. A row reads two spans: its shared prefix, then its own positions. */
typedef struct {
    const float *keys, *values;
    int64_t stop;
} span;

/* Weighted sum of the values of two spans, for `count` vectors of each from i on. */
static inline __attribute__((always_inline)) void weighted_sum(
    const float *weights, const span *spans, int64_t i, int64_t width, const int count, float scale, float *out) {
    vec total[count];
    for (int n = 0; n < count; n++) total[n] = (vec){0};
    for (int64_t s = 0, t = 0; s < 2; s++)
        for (; t < spans[s].stop; t++)
            for (int n = 0; n < count; n++)
                total[n] += weights[t] * *(const vec *)(spans[s].values + t * width + i + n * LANES);
    for (int n = 0; n < count; n++) *(vec *)(out + i + n * LANES) = total[n] * scale;
}

/* Attention of a scaled query [width] over two spans; scores [positions + LANES] is working memory. */
static void attend(const float *query, const span *spans, int64_t width, float *scores, float *out) {
    const int64_t positions = spans[1].stop;
    float highest = -INFINITY;
    for (int64_t s = 0, t = 0; s < 2; s++)
        for (; t < spans[s].stop; t++) {
            const float *key = spans[s].keys + t * width;
            vec dot = {0};
            for (int64_t i = 0; i < width; i += LANES) dot += *(const vec *)(query + i) * *(const vec *)(key + i);
            scores[t] = sum(dot);
            highest = scores[t] > highest ? scores[t] : highest;
        }
    for (int64_t t = positions; t < positions + LANES; t++) scores[t] = -INFINITY;
    vec weights = {0};
    for (int64_t t = 0; t < positions; t += LANES)
        weights += *(vec *)(scores + t) = exponential(*(vec *)(scores + t) - highest);
    float scale = 1 / sum(weights);
    int64_t i = 0;
    for (; i + 8 * LANES <= width; i += 8 * LANES) weighted_sum(scores, spans, i, width, 8, scale, out);
    for (; i + 4 * LANES <= width; i += 4 * LANES) weighted_sum(scores, spans, i, width, 4, scale, out);
    for (; i < width; i += LANES) weighted_sum(scores, spans, i, width, 1, scale, out);
}

/* Finds the two spans that row r attends to in layer l, for KV head g. */
static void find_spans(const model *m, const kv_cache *c, const batch *b, int64_t l, int64_t r, int64_t g, span *spans) {
    int64_t stop = b->positions[r] + 1, shared = b->shared && b->shared[r] ? minimum(b->num_shared[r], stop) : 0;
    const float *own = c->state + l * c->layer_stride + b->slots[r] * c->slot_stride + g * c->head_stride;
    spans[1] = (span){own, own + c->value_stride, stop};
    spans[0] = (span){own, own, shared};
    if (!shared) return;
    int64_t head_stride = b->shared_lengths[r] * m->head_dim, value_stride = m->num_kv_heads * head_stride;
    spans[0].keys = b->shared[r] + l * 2 * value_stride + g * head_stride;
    spans[0].values = spans[0].keys + value_stride;
}

/* Writes the key and value of row r and one KV head to the cache; rotates the key and the queries of that head. */
static void store(
    const model *m, const batch *b, int64_t r, int64_t head, float *keys, float *values, float *query, const float *key,
    const float *value) {
    int64_t h = m->head_dim, each = m->num_heads / m->num_kv_heads, offset = b->positions[r] * h;
    const float *rotation = b->rotation + 2 * offset;
    memcpy(keys + offset, key + (r * m->num_kv_heads + head) * h, h * sizeof(float));
    memcpy(values + offset, value + (r * m->num_kv_heads + head) * h, h * sizeof(float));
    rotate(keys + offset, rotation, h, 1);
    for (int64_t n = head * each; n < (head + 1) * each; n++)
        rotate(query + (r * m->num_heads + n) * h, rotation, h, 1 / sqrtf(h));
}

/* Floats of working memory that `higgs_forward` needs if rows attend to at most `positions` positions. */
EXPORT int64_t higgs_forward_workspace(const model *m, int64_t rows, int64_t threads, int64_t positions) {
    int64_t heads = (2 * m->num_heads + 2 * m->num_kv_heads) * m->head_dim;
    return rows * (heads + m->hidden_size + m->intermediate_size) + threads * (rows * BUFFERED + positions + LANES);
}

/* Runs rows x [num_rows, hidden_size] in place through all layers. Writes logits [num_logit_rows, head.out]. */
EXPORT void higgs_forward(
    const model *m, const kv_cache *c, const batch *b, float *x, float *logits, float *work, int64_t threads,
    int64_t positions) {
    const int64_t rows = b->num_rows, text = b->num_text_rows, audio = rows - text, width = m->hidden_size;
    const int64_t is_bfloat16 = m->is_bfloat16, ffn = m->intermediate_size;
    const int64_t h = m->head_dim, q = m->num_heads * h, k = m->num_kv_heads * h, each = m->num_heads / m->num_kv_heads;
    float *query = work, *attended = query + rows * q, *key = attended + rows * q, *value = key + rows * k;
    float *normed = value + rows * k, *inner = normed + rows * width, *buffers = inner + rows * ffn;
#pragma omp parallel num_threads(threads)
    {
        const int64_t number = thread_number();
        float *scores = buffers + number * (rows * BUFFERED + positions + LANES), *buffer = scores + positions + LANES;
        for (int64_t l = 0; l < m->num_layers; l++) {
            const layer *a = m->layers + l;
            float *state = c->state + l * c->layer_stride;
#define EACH_OUTPUT(count, out) \
    _Pragma("omp for schedule(static) nowait") for (int64_t o = 0; o < (out); o += outputs_at_once(count))
#define BARRIER _Pragma("omp barrier")
#pragma omp for schedule(static)
            for (int64_t r = 0; r < rows; r++) {
                const feed_forward *f = r < text ? &a->text : &a->audio;
                norm(x + r * width, f->input_norm, width, m->eps, normed + r * width);
            }
            EACH_OUTPUT(rows, q) multiply_to(&a->query, is_bfloat16, normed, rows, o, buffer, query);
            EACH_OUTPUT(rows, k) multiply_to(&a->key, is_bfloat16, normed, rows, o, buffer, key);
            EACH_OUTPUT(rows, k) multiply_to(&a->value, is_bfloat16, normed, rows, o, buffer, value);
            BARRIER
#pragma omp for schedule(static)
            for (int64_t i = 0; i < rows * m->num_kv_heads; i++) {
                int64_t r = i / m->num_kv_heads, g = i % m->num_kv_heads;
                float *keys = state + b->slots[r] * c->slot_stride + g * c->head_stride;
                store(m, b, r, g, keys, keys + c->value_stride, query, key, value);
            }
            if (l + 1 == m->num_layers && !b->num_logit_rows) break; /* without logits, only the layer's keys and values are needed */
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < rows * m->num_heads; i++) { /* head by head: rows that share a prefix are consecutive */
                int64_t head = i / rows, r = i % rows;
                span spans[2];
                find_spans(m, c, b, l, r, head / each, spans);
                attend(query + (r * m->num_heads + head) * h, spans, h, scores, attended + (r * m->num_heads + head) * h);
            }
            EACH_OUTPUT(rows, width) multiply_add(&a->output, is_bfloat16, attended, rows, o, buffer, x);
            BARRIER
#pragma omp for schedule(static)
            for (int64_t r = 0; r < rows; r++) {
                const feed_forward *f = r < text ? &a->text : &a->audio;
                norm(x + r * width, f->post_attention_norm, width, m->eps, normed + r * width);
            }
            if (text) EACH_OUTPUT(text, ffn) gated(&a->text, is_bfloat16, normed, text, o, buffer, inner);
            if (audio)
                EACH_OUTPUT(audio, ffn)
                    gated(&a->audio, is_bfloat16, normed + text * width, audio, o, buffer, inner + text * ffn);
            BARRIER
            if (text) EACH_OUTPUT(text, width) multiply_add(&a->text.down, is_bfloat16, inner, text, o, buffer, x);
            if (audio)
                EACH_OUTPUT(audio, width)
                    multiply_add(&a->audio.down, is_bfloat16, inner + text * ffn, audio, o, buffer, x + text * width);
            BARRIER
        }
        const int64_t last = b->num_logit_rows, first = rows - last;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < last; r++) norm(x + (first + r) * width, m->final_norm, width, m->eps, normed + r * width);
        if (last) EACH_OUTPUT(last, m->head.out) multiply_to(&m->head, is_bfloat16, normed, last, o, buffer, logits);
    }
}
