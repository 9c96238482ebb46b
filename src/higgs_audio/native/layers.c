/* All decoder layers for the rows of a batch, on a CPU; see engine/native_layers.py.
 *
 * In torch, overhead per operation dominates a step of a small model, and reading the weights dominates a step of a large one.
 * Here all layers are one program of the thread pool, and each weight is read once per group of rows, in bfloat16 if that is
 * exact. The order of summation of a row is fixed, so its result does not depend on the other rows of the batch.
 */

#include "export.h"
#include "matrix.h"
#include "pool.h"

#define SMALLEST_PIECE 16384 /* floats that a piece of a norm reads: 4 us */

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

/* Computes one tile of up(x) times the SiLU of gate(x). */
static void gated(
    const feed_forward *f, int64_t is_bfloat16, const float *x, int64_t rows, int64_t number, float *buffer, float *result) {
    const tile t = find_tile(rows, f->gate.out, number);
    float *gate = buffer, *up = buffer + t.rows * outputs_at_once(t.rows);
    x += t.first * f->gate.in, result += t.first * f->gate.out + t.o;
    int64_t stride = multiply(&f->gate, is_bfloat16, x, t.rows, t.o, gate), count = minimum(stride, f->gate.out - t.o);
    multiply(&f->up, is_bfloat16, x, t.rows, t.o, up);
    for (int64_t r = 0; r < t.rows; r++)
        for (int64_t i = 0; i < count; i += LANES) {
            vec g = *(const vec *)(gate + r * stride + i), u = *(const vec *)(up + r * stride + i);
            *(vec *)(result + r * f->gate.out + i) = u * g / (1.0f + exponential(-g));
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

/* One forward pass: its arguments, and the working memory that its threads share. */
typedef struct {
    const model *m;
    const kv_cache *c;
    const batch *b;
    float *x, *logits, *query, *attended, *key, *value, *normed, *inner;
    int64_t positions; /* at most as many are attended to */
} pass;

/* Floats of one thread: scores, then buffered outputs. */
static int64_t thread_floats(int64_t rows, int64_t positions) { return positions + LANES + minimum(rows, GROUP) * BUFFERED; }

/* Rows that one piece normalizes or stores: enough to be worth a piece. */
static int64_t rows_at_once(int64_t width) { return width < SMALLEST_PIECE ? SMALLEST_PIECE / width : 1; }

/* Rows of one head that one piece attends with. */
static int64_t queries_at_once(int64_t rows) { return rows < 16 ? 1 : 4; }

static int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Stages of a layer; after the layers, FINAL_NORM and HEAD. */
enum { INPUT_NORM, PROJECT, STORE, ATTEND, OUTPUT, POST_NORM, GATED, DOWN, NUM_STAGES };
enum { FINAL_NORM, HEAD, NUM_LAST };

static int64_t count_pieces(const void *context, int64_t stage) {
    const pass *p = context;
    const model *m = p->m;
    const int64_t rows = p->b->num_rows, text = p->b->num_text_rows, last = p->b->num_logit_rows;
    const layer *a = m->layers + stage / NUM_STAGES;
    int64_t after = stage - m->num_layers * NUM_STAGES;
    if (after >= NUM_LAST || (!last && after > STORE - NUM_STAGES)) return END; /* without logits, keys and values are enough */
    if (after == FINAL_NORM) return ceiling(last, rows_at_once(m->hidden_size));
    if (after == HEAD) return num_tiles(last, m->head.out);
    switch (stage % NUM_STAGES) {
        case PROJECT: return num_tiles(rows, a->query.out) + 2 * num_tiles(rows, a->key.out);
        case STORE: return ceiling(rows, rows_at_once(a->query.out));
        case ATTEND: return m->num_heads * ceiling(rows, queries_at_once(rows));
        case OUTPUT: return num_tiles(rows, m->hidden_size);
        case GATED: return num_tiles(text, m->intermediate_size) + num_tiles(rows - text, m->intermediate_size);
        case DOWN: return num_tiles(text, m->hidden_size) + num_tiles(rows - text, m->hidden_size);
        default: return ceiling(rows, rows_at_once(m->hidden_size));
    }
}

/* Normalizes rows from `first` to `stop`, with the weights of the layer, or those of the end if `a` is NULL. */
static void normalize(const pass *p, const layer *a, int is_input, int64_t first, int64_t stop) {
    const int64_t width = p->m->hidden_size;
    for (int64_t r = first; r < stop; r++) {
        const feed_forward *f = a ? r < p->b->num_text_rows ? &a->text : &a->audio : NULL;
        const float *weight = !f ? p->m->final_norm : is_input ? f->input_norm : f->post_attention_norm;
        norm(p->x + r * width, weight, width, p->m->eps, p->normed + r * width);
    }
}

static void project(const pass *p, const layer *a, int64_t piece, float *buffer) {
    const int64_t rows = p->b->num_rows, queries = num_tiles(rows, a->query.out), keys = num_tiles(rows, a->key.out);
    if (piece < queries) multiply_to(&a->query, p->m->is_bfloat16, p->normed, rows, piece, buffer, p->query);
    else if (piece < queries + keys) multiply_to(&a->key, p->m->is_bfloat16, p->normed, rows, piece - queries, buffer, p->key);
    else multiply_to(&a->value, p->m->is_bfloat16, p->normed, rows, piece - queries - keys, buffer, p->value);
}

static void store_rows(const pass *p, int64_t l, int64_t first, int64_t stop) {
    const kv_cache *c = p->c;
    for (int64_t r = first; r < stop; r++)
        for (int64_t g = 0; g < p->m->num_kv_heads; g++) {
            float *keys = c->state + l * c->layer_stride + p->b->slots[r] * c->slot_stride + g * c->head_stride;
            store(p->m, p->b, r, g, keys, keys + c->value_stride, p->query, p->key, p->value);
        }
}

/* Piece by piece, head by head: rows that share a prefix are consecutive. */
static void attend_rows(const pass *p, int64_t l, int64_t piece, float *scores) {
    const model *m = p->m;
    const int64_t rows = p->b->num_rows, size = queries_at_once(rows), each = ceiling(rows, size);
    const int64_t head = piece / each, first = piece % each * size;
    for (int64_t r = first; r < minimum(first + size, rows); r++) {
        int64_t offset = (r * m->num_heads + head) * m->head_dim;
        span spans[2];
        find_spans(m, p->c, p->b, l, r, head / (m->num_heads / m->num_kv_heads), spans);
        attend(p->query + offset, spans, m->head_dim, scores, p->attended + offset);
    }
}

/* The feed-forward networks: pieces of text, then of audio. */
static void feed(const pass *p, const layer *a, int is_gated, int64_t piece, float *buffer) {
    const model *m = p->m;
    const int64_t text = p->b->num_text_rows, pieces = num_tiles(text, is_gated ? m->intermediate_size : m->hidden_size);
    const int64_t is_audio = piece >= pieces, first = is_audio ? text : 0, rows = is_audio ? p->b->num_rows - text : text;
    const feed_forward *f = is_audio ? &a->audio : &a->text;
    float *x = p->x + first * m->hidden_size, *inner = p->inner + first * m->intermediate_size;
    if (is_audio) piece -= pieces;
    if (is_gated) gated(f, m->is_bfloat16, p->normed + first * m->hidden_size, rows, piece, buffer, inner);
    else multiply_add(&f->down, m->is_bfloat16, inner, rows, piece, buffer, x);
}

static void run_piece(const void *context, int64_t stage, int64_t piece, void *scratch) {
    const pass *p = context;
    const model *m = p->m;
    const int64_t rows = p->b->num_rows, last = p->b->num_logit_rows, l = stage / NUM_STAGES;
    const int64_t size = rows_at_once(m->hidden_size), first = piece * size, stop = minimum(first + size, rows);
    const layer *a = m->layers + l;
    float *scores = scratch, *buffer = scores + p->positions + LANES;
    if (l == m->num_layers && stage % NUM_STAGES == FINAL_NORM)
        return normalize(p, NULL, 0, rows - last + first, minimum(rows - last + first + size, rows));
    if (l == m->num_layers)
        return multiply_to(&m->head, m->is_bfloat16, p->normed + (rows - last) * m->hidden_size, last, piece, buffer, p->logits);
    switch (stage % NUM_STAGES) {
        case INPUT_NORM: return normalize(p, a, 1, first, stop);
        case PROJECT: return project(p, a, piece, buffer);
        case STORE: return store_rows(p, l, piece * rows_at_once(a->query.out),
                                      minimum((piece + 1) * rows_at_once(a->query.out), rows));
        case ATTEND: return attend_rows(p, l, piece, scores);
        case OUTPUT: return multiply_add(&a->output, m->is_bfloat16, p->attended, rows, piece, buffer, p->x);
        case POST_NORM: return normalize(p, a, 0, first, stop);
        case GATED: return feed(p, a, 1, piece, buffer);
        case DOWN: return feed(p, a, 0, piece, buffer);
    }
}

/* Floats of working memory that `higgs_forward` needs if rows attend to at most `positions` positions. */
EXPORT int64_t higgs_forward_workspace(const model *m, int64_t rows, int64_t positions) {
    int64_t heads = (2 * m->num_heads + 2 * m->num_kv_heads) * m->head_dim;
    return rows * (heads + m->hidden_size + m->intermediate_size) + thread_floats(rows, positions);
}

/* Runs rows x [num_rows, hidden_size] in place through all layers. Writes logits [num_logit_rows, head.out]. */
EXPORT void higgs_forward(
    const model *m, const kv_cache *c, const batch *b, float *x, float *logits, float *work, int64_t threads,
    int64_t positions) {
    const int64_t rows = b->num_rows, q = m->num_heads * m->head_dim, k = m->num_kv_heads * m->head_dim;
    pass p = {.m = m, .c = c, .b = b, .x = x, .logits = logits, .positions = positions};
    p.query = work, p.attended = p.query + rows * q, p.key = p.attended + rows * q, p.value = p.key + rows * k;
    p.normed = p.value + rows * k, p.inner = p.normed + rows * m->hidden_size;
    program forward = {count_pieces, run_piece, &p, thread_floats(rows, positions) * sizeof(float)};
    run_program(&forward, p.inner + rows * m->intermediate_size, threads);
}
