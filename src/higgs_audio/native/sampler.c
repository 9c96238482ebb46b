/* Samples the next column of every sequence, on a CPU: guidance, filters, draws, and the bos and eos of the delay pattern.
 *
 * `next_columns` of engine/decode_state.py does the same with tensors, where overhead per operation dominates on a CPU. The
 * column of a sequence does not depend on the other sequences.
 */

#include <stdlib.h>

#include "export.h"
#include "pool.h"
#include "vectors.h"

/* Mirrored by SamplerStruct in structs.py. Options have the names of `SamplingOptions`. N sequences, K codebooks, a window of
 * W columns. */
typedef struct {
    int64_t num_sequences, num_codebooks, num_ids, window_width, bos, eos;
    const int64_t *conditional_rows, *negative_rows;             /* [N] rows of the logits; equal without guidance */
    const int64_t *num_columns, *end, *min_frames, *max_frames;  /* [N] */
    const uint8_t *do_sample;                                    /* [N] */
    const float *temperature;                                    /* [N] */
    const int64_t *top_k;                                        /* [N] */
    const float *top_p;                                          /* [N] */
    const int64_t *ras_win_len, *ras_win_max_num_repeat;         /* [N] */
    const float *text_guidance_scale;                            /* [N] */
    const int64_t *eos_codebooks;                                /* [N] */
    const int64_t *recent;                                       /* [N, K, W] */
    const double *noise; /* [N, noise_stride], of this step: K numbers for the draws, then K for the redraws */
    int64_t noise_stride;
} sampler;

EXPORT_SIZEOF(sampler)

typedef struct {
    float logit;
    int32_t index;
} candidate;

/* Working memory of a thread, `scratch_size` bytes: logits padded with -inf to whole vectors, and values computed from them. */
typedef struct {
    float *conditional, *negative, *scaled, *weights;
    int32_t *ids;
    candidate *order;
} scratch;

static int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

/* The maximum of x [count], whole vectors. */
static float maximum(const float *x, int64_t count) {
    vec highest = *(const vec *)x;
    for (int64_t i = LANES; i < count; i += LANES) highest = where(*(const vec *)(x + i) > highest, *(const vec *)(x + i), highest);
    float result = highest[0];
    for (int i = 1; i < LANES; i++) result = highest[i] > result ? highest[i] : result;
    return result;
}

/* log(sum(exp(x))) of x [count], whole vectors. */
static float log_sum_exp(const float *x, int64_t count) {
    float highest = maximum(x, count);
    if (highest == -INFINITY) return highest;
    vec total = {0};
    for (int64_t i = 0; i < count; i += LANES) total += exponential(*(const vec *)(x + i) - highest);
    return highest + logf(sum(total));
}

/* Copies logits and pads them. Returns whether all are below infinity; NaN is not. */
static int copy(const float *source, int64_t count, float *target) {
    memcpy(target, source, count * sizeof(float));
    for (int64_t i = count; i < padded(count); i++) target[i] = -INFINITY;
    ints wrong = {0};
    for (int64_t i = 0; i < padded(count); i += LANES) wrong |= ~(*(const vec *)(target + i) < INFINITY);
    for (int i = 0; i < LANES; i++)
        if (wrong[i]) return 0;
    return 1;
}

/* `apply_guidance` of generation/guidance.py, in place: the result replaces `conditional`. */
static void apply_guidance(float *conditional, const float *negative, int64_t count, float scale, int64_t eos) {
    float eos_logit = conditional[eos];
    conditional[eos] = -INFINITY;
    float log_odds = eos_logit - log_sum_exp(conditional, padded(count));
    for (int64_t i = 0; i < padded(count); i += LANES) {
        vec c = *(const vec *)(conditional + i), u = *(const vec *)(negative + i), guided = u + scale * (c - u);
        *(vec *)(conditional + i) = guided;
    }
    conditional[eos] = -INFINITY;
    for (int64_t i = count; i < padded(count); i++) conditional[i] = -INFINITY;
    conditional[eos] = log_odds + log_sum_exp(conditional, padded(count));
}

/* Converts floats to integers that compare in the same order. */
static inline ints ordered(vec x) {
    ints bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

/* The k-th largest of x [count], whole vectors: a binary search over the bits of its value. */
static float kth_largest(const float *x, int64_t count, int64_t k) {
    int64_t low = INT32_MIN, high = INT32_MAX; /* at least k values reach low, fewer than k exceed high */
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2, reached = 0;
        ints number = {0};
        for (int64_t i = 0; i < count; i += LANES) number -= ordered(*(const vec *)(x + i)) >= (int32_t)middle;
        for (int i = 0; i < LANES; i++) reached += number[i];
        if (reached >= k) low = middle;
        else high = middle - 1;
    }
    int32_t bits = (int32_t)low;
    float value;
    bits ^= (bits >> 31) & 0x7fffffff;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The first index of the maximum of x [count]. */
static int64_t argmax(const float *x, int64_t count) {
    float highest = maximum(x, padded(count));
    for (int64_t i = 0; i < count; i++)
        if (x[i] == highest) return i;
    return 0;
}

/* The first index where the cumulative sum of weights [count] exceeds `noise` times their total. */
static int64_t draw(const float *weights, int64_t count, double noise) {
    double total = 0, cumulative = 0;
    for (int64_t i = 0; i < count; i++) total += weights[i];
    for (int64_t i = 0; i < count; i++)
        if ((cumulative += weights[i]) > noise * total) return i;
    return 0;
}

/* exp(x - max(x)) of x [count]; 0 for -inf. */
static void softmax_weights(const float *x, int64_t count, float *weights) {
    float highest = maximum(x, padded(count));
    for (int64_t i = 0; i < padded(count); i += LANES) {
        vec v = *(const vec *)(x + i);
        *(vec *)(weights + i) = where(v == -INFINITY, (vec){0}, exponential(v - highest));
    }
}

static int by_logit(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->index < y->index ? -1 : 1; /* equal logits: the lower id first */
}

/* Top-p: in descending order, a weight becomes 0 if the weights before it reach top_p of the total. */
static void keep_top_p(int64_t count, float top_p, const scratch *s) {
    double total = 0, before = 0;
    for (int64_t i = 0; i < count; i++) {
        s->order[i] = (candidate){s->scaled[i], (int32_t)i};
        total += s->weights[i];
    }
    qsort(s->order, count, sizeof *s->order, by_logit);
    for (int64_t i = 0; i < count; i++) {
        float *weight = s->weights + s->order[i].index, own = *weight;
        if (before >= top_p * total) *weight = 0;
        before += own;
    }
}

/* `sample_ids` of decode_state.py for one codebook: temperature, then top-k, then top-p, then a draw. */
static int64_t sample_id(const sampler *in, int64_t n, double noise, const scratch *s) {
    int64_t count = in->num_ids, kept = 0, k = in->top_k[n];
    for (int64_t i = 0; i < padded(count); i += LANES)
        *(vec *)(s->scaled + i) = *(const vec *)(s->conditional + i) / in->temperature[n];
    float least_kept = k < count ? kth_largest(s->scaled, padded(count), k) : -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        s->ids[kept] = (int32_t)i;
        kept += s->scaled[i] >= least_kept;
    }
    for (int64_t i = 0; i < kept; i++) s->scaled[i] = s->scaled[s->ids[i]];
    for (int64_t i = kept; i < padded(kept); i++) s->scaled[i] = -INFINITY;
    softmax_weights(s->scaled, kept, s->weights);
    if (in->top_p[n] < 1) keep_top_p(kept, in->top_p[n], s);
    return s->ids[draw(s->weights, kept, noise)];
}

/* Whether repetition-aware sampling redraws an id: it occurs too often in the window of its codebook. */
static int is_repeated(const sampler *in, int64_t n, int64_t codebook, int64_t id) {
    const int64_t *recent = in->recent + (n * in->num_codebooks + codebook) * in->window_width, width = in->window_width;
    int64_t counted = 0, first = width - minimum(width, in->ras_win_len[n]);
    for (int64_t i = first; i < width; i++) counted += recent[i] == id;
    return counted >= in->ras_win_max_num_repeat[n];
}

/* Samples the next id of one codebook of sequence n; sets is_finite to whether its logits were finite or -inf. */
static int64_t next_id(
    const sampler *in, int64_t n, int64_t codebook, const float *logits, const scratch *s, int64_t *is_finite) {
    int64_t count = in->num_ids, stride = in->num_codebooks * count;
    int64_t conditional = in->conditional_rows[n], negative = in->negative_rows[n];
    const double *noise = in->noise + n * in->noise_stride + codebook;
    *is_finite = copy(logits + conditional * stride + codebook * count, count, s->conditional);
    if (negative != conditional) {
        *is_finite &= copy(logits + negative * stride + codebook * count, count, s->negative);
        apply_guidance(s->conditional, s->negative, count, in->text_guidance_scale[n], in->eos);
    }
    s->conditional[in->bos] = -INFINITY;
    int is_early = in->num_columns[n] - 1 - codebook < in->min_frames[n];
    if (is_early || codebook >= in->eos_codebooks[n]) s->conditional[in->eos] = -INFINITY;
    int64_t id = in->do_sample[n] ? sample_id(in, n, *noise, s) : argmax(s->conditional, count);
    if (in->ras_win_len[n] > 0 && is_repeated(in, n, codebook, id)) {
        softmax_weights(s->conditional, count, s->weights);
        id = draw(s->weights, count, noise[in->num_codebooks]);
    }
    return codebook == 0 && in->end[n] == 0 && in->num_columns[n] == in->max_frames[n] + 1 ? in->eos : id;
}

/* Writes the bos and eos that the delay pattern forces into ids [K] of sequence n. Returns the number of columns of the
 * whole segment, 0 while it is open. */
static int64_t force_bos_and_eos(const sampler *in, int64_t n, int64_t *ids) {
    int64_t codebooks = in->num_codebooks, num_columns = in->num_columns[n], end = in->end[n], first = 0;
    for (int64_t k = num_columns; k < codebooks; k++) ids[k] = in->bos;
    while (first < codebooks && ids[first] != in->eos) first++;
    if (end == 0 && first < codebooks) end = num_columns + codebooks - first;
    for (int64_t k = 0; end && k < minimum(codebooks, num_columns + codebooks - end); k++) ids[k] = in->eos;
    return end;
}

/* Shifts the window [K, W] of repetition-aware sampling by one column; bos and eos are stored as -1. */
static void shift_window(const sampler *in, int64_t n, const int64_t *ids, int64_t *recent) {
    int64_t width = in->window_width;
    const int64_t *before = in->recent + n * in->num_codebooks * width;
    for (int64_t codebook = 0; codebook < in->num_codebooks; codebook++) {
        memcpy(recent + codebook * width, before + codebook * width + 1, (width - 1) * sizeof *recent);
        recent[codebook * width + width - 1] = ids[codebook] >= in->bos ? -1 : ids[codebook];
    }
}

/* The arguments of `higgs_sampler_next_columns`, and whether the logits of each codebook were finite. */
typedef struct {
    const sampler *in;
    const float *logits;
    int64_t *result, *recent, *finite;
} sampler_call;

static int64_t scratch_size(int64_t num_ids) {
    return padded(num_ids) * (4 * sizeof(float) + sizeof(int32_t) + sizeof(candidate));
}

/* Samples one id of every sequence and codebook. */
static void sample_piece(const sampler_call *call, int64_t piece, void *work) {
    const int64_t codebooks = call->in->num_codebooks, size = padded(call->in->num_ids);
    float *floats = work;
    candidate *order = (candidate *)(floats + 4 * size);
    scratch s = {floats, floats + size, floats + 2 * size, floats + 3 * size, (int32_t *)(order + size), order};
    int64_t n = piece / codebooks, codebook = piece % codebooks;
    call->result[n * (codebooks + 3) + codebook] = next_id(call->in, n, codebook, call->logits, &s, call->finite + piece);
}

/* Completes the columns of all sequences. */
static void complete(const sampler_call *call) {
    const sampler *in = call->in;
    const int64_t codebooks = in->num_codebooks;
    for (int64_t n = 0; n < in->num_sequences; n++) {
        int64_t *column = call->result + n * (codebooks + 3), is_finite = 1;
        for (int64_t k = 0; k < codebooks; k++) is_finite &= call->finite[n * codebooks + k];
        column[codebooks] = force_bos_and_eos(in, n, column);
        column[codebooks + 1] = column[codebooks] > 0 && in->num_columns[n] + 1 >= column[codebooks];
        column[codebooks + 2] = is_finite;
        shift_window(in, n, column, call->recent + n * codebooks * in->window_width);
    }
}

static int64_t count_pieces(const void *context, int64_t stage) {
    const sampler *in = ((const sampler_call *)context)->in;
    return stage == 0 ? in->num_sequences * in->num_codebooks : stage == 1 ? 1 : END;
}

static void run_piece(const void *context, int64_t stage, int64_t piece, void *work) {
    if (stage == 0) sample_piece(context, piece, work);
    else complete(context);
}

/* Bytes of working memory that `higgs_sampler_next_columns` needs. */
EXPORT int64_t higgs_sampler_workspace(int64_t num_sequences, int64_t num_codebooks, int64_t num_ids) {
    return num_sequences * num_codebooks * sizeof(int64_t) + scratch_size(num_ids);
}

/* Reads logits [rows, K, ids]. Writes result [N, K + 3]: the column, the number of columns of the whole segment (0 while it
 * is open), whether this column is the last one, whether its logits were finite or -inf; and the next windows, recent
 * [N, K, W].
 */
EXPORT void higgs_sampler_next_columns(
    const sampler *in, const float *logits, int64_t *result, int64_t *recent, void *work, int64_t threads) {
    sampler_call call = {in, logits, result, recent, work};
    program columns = {count_pieces, run_piece, &call, scratch_size(in->num_ids)};
    run_program(&columns, call.finite + in->num_sequences * in->num_codebooks, threads);
}
