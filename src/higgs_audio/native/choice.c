/* The next column of every lane, on a CPU: guidance, filters, draws, and the markers of the delay pattern.
 *
 * What `engine/lanes.py` does with tensors, which on a CPU is mostly the overhead of its operations. A lane's column does
 * not depend on the others.
 */

#include <stdlib.h>

#include "vectors.h"

typedef struct {
    int64_t num_lanes, num_books, num_ids, window_width, bos, eos;
    const int64_t *read, *unread; /* [lanes] rows of the logits */
    const int64_t *made, *end, *min_frames, *max_frames, *top_k, *window, *repeats, *end_books; /* [lanes] */
    const uint8_t *is_random;                                                                   /* [lanes] */
    const float *temperature, *top_p, *scale;                                                   /* [lanes] */
    const int64_t *recent;                                                                      /* [lanes, books, width] */
    const double *noise; /* [lanes, of_noise], of this step: the draws' and then the redraws', [2 books] */
    int64_t of_noise;
} lanes;

typedef struct {
    float logit;
    int32_t place;
} candidate;

/* Working memory of a thread: logits, filled up to whole vectors with -inf, and what is made of them. */
typedef struct {
    float *read, *unread, *scaled, *shares;
    int32_t *ids;
    candidate *order;
} scratch;

static int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

/* The greatest of x [count], whole vectors. */
static float greatest(const float *x, int64_t count) {
    vec most = *(const vec *)x;
    for (int64_t i = LANES; i < count; i += LANES) most = where(*(const vec *)(x + i) > most, *(const vec *)(x + i), most);
    float result = most[0];
    for (int i = 1; i < LANES; i++) result = most[i] > result ? most[i] : result;
    return result;
}

static float log_sum(const float *x, int64_t count) {
    float most = greatest(x, count);
    if (most == -INFINITY) return most;
    vec total = {0};
    for (int64_t i = 0; i < count; i += LANES) total += exponential(*(const vec *)(x + i) - most);
    return most + logf(sum(total));
}

/* A copy, filled up; whether all are below infinity, which NaN is not. */
static int copy(const float *source, int64_t count, float *target) {
    memcpy(target, source, count * sizeof(float));
    for (int64_t i = count; i < padded(count); i++) target[i] = -INFINITY;
    ints wrong = {0};
    for (int64_t i = 0; i < padded(count); i += LANES) wrong |= ~(*(const vec *)(target + i) < INFINITY);
    for (int i = 0; i < LANES; i++)
        if (wrong[i]) return 0;
    return 1;
}

/* As guidance.guided: the logits of who reads, in place; `unread` is written to. */
static void guide(float *read, float *unread, int64_t count, float scale, int64_t end) {
    float ending = read[end];
    read[end] = -INFINITY;
    float ends = ending - log_sum(read, padded(count));
    for (int64_t i = 0; i < padded(count); i += LANES) {
        vec r = *(const vec *)(read + i), u = *(const vec *)(unread + i), others = u + scale * (r - u);
        *(vec *)(read + i) = others;
    }
    read[end] = -INFINITY;
    for (int64_t i = count; i < padded(count); i++) read[i] = -INFINITY;
    read[end] = ends + log_sum(read, padded(count));
}

/* A float as a whole number of the same order. */
static inline ints ordered(vec x) {
    ints bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

/* The k-th greatest of x [count], whole vectors: found by its bits, from the highest on. */
static float at_rank(const float *x, int64_t count, int64_t k) {
    int64_t low = INT32_MIN, high = INT32_MAX; /* the greatest number that k of them reach lies between */
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

static int64_t likeliest(const float *x, int64_t count) {
    float most = greatest(x, padded(count));
    for (int64_t i = 0; i < count; i++)
        if (x[i] == most) return i;
    return 0;
}

/* The place where shares [count], added up, pass `noise` of them all. */
static int64_t drawn(const float *shares, int64_t count, double noise) {
    double whole = 0, reached = 0;
    for (int64_t i = 0; i < count; i++) whole += shares[i];
    for (int64_t i = 0; i < count; i++)
        if ((reached += shares[i]) > noise * whole) return i;
    return 0;
}

/* e to what x [count] are below the greatest; nothing for -inf. */
static void shares_of(const float *x, int64_t count, float *shares) {
    float most = greatest(x, padded(count));
    for (int64_t i = 0; i < padded(count); i += LANES) {
        vec v = *(const vec *)(x + i);
        *(vec *)(shares + i) = where(v == -INFINITY, (vec){0}, exponential(v - most));
    }
}

static int by_logit(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->place < y->place ? -1 : 1; /* of equal ones the lower id first */
}

/* Shares [count] that lie behind `top_p` of them all, the likeliest first, become 0. */
static void cut(int64_t count, float top_p, const scratch *s) {
    double whole = 0, more = 0;
    for (int64_t i = 0; i < count; i++) {
        s->order[i] = (candidate){s->scaled[i], (int32_t)i};
        whole += s->shares[i];
    }
    qsort(s->order, count, sizeof *s->order, by_logit);
    for (int64_t i = 0; i < count; i++) {
        float *share = s->shares + s->order[i].place, own = *share;
        if (more >= top_p * whole) *share = 0;
        more += own;
    }
}

/* As lanes.choose: temperature, then top-k, then top-p, then a draw. */
static int64_t choose(const lanes *l, int64_t lane, double noise, const scratch *s) {
    int64_t count = l->num_ids, kept = 0, k = l->top_k[lane];
    for (int64_t i = 0; i < padded(count); i += LANES)
        *(vec *)(s->scaled + i) = *(const vec *)(s->read + i) / l->temperature[lane];
    float least_kept = k < count ? at_rank(s->scaled, padded(count), k) : -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        s->ids[kept] = (int32_t)i;
        kept += s->scaled[i] >= least_kept;
    }
    for (int64_t i = 0; i < kept; i++) s->scaled[i] = s->scaled[s->ids[i]];
    for (int64_t i = kept; i < padded(kept); i++) s->scaled[i] = -INFINITY;
    shares_of(s->scaled, kept, s->shares);
    if (l->top_p[lane] < 1) cut(kept, l->top_p[lane], s);
    return s->ids[drawn(s->shares, kept, noise)];
}

/* As lanes._without_repetition: whether an id lies too often in the window of its codebook. */
static int repeats(const lanes *l, int64_t lane, int64_t book, int64_t id) {
    const int64_t *recent = l->recent + (lane * l->num_books + book) * l->window_width, width = l->window_width;
    int64_t counted = 0, first = width - least(width, l->window[lane]);
    for (int64_t i = first; i < width; i++) counted += recent[i] == id;
    return counted >= l->repeats[lane];
}

/* The id of one codebook of a lane; whether its logits were numbers. */
static int64_t next_id(const lanes *l, int64_t lane, int64_t book, const float *logits, const scratch *s, int64_t *is_finite) {
    int64_t count = l->num_ids, of_row = l->num_books * count, read = l->read[lane], unread = l->unread[lane];
    const double *noise = l->noise + lane * l->of_noise + book;
    *is_finite = copy(logits + read * of_row + book * count, count, s->read);
    if (unread != read) {
        *is_finite &= copy(logits + unread * of_row + book * count, count, s->unread);
        guide(s->read, s->unread, count, l->scale[lane], l->eos);
    }
    s->read[l->bos] = -INFINITY;
    if (l->made[lane] - 1 - book < l->min_frames[lane] || book >= l->end_books[lane]) s->read[l->eos] = -INFINITY;
    int64_t id = l->is_random[lane] ? choose(l, lane, *noise, s) : likeliest(s->read, count);
    if (l->window[lane] > 0 && repeats(l, lane, book, id)) {
        shares_of(s->read, count, s->shares);
        id = drawn(s->shares, count, noise[l->num_books]);
    }
    return book == 0 && l->end[lane] == 0 && l->made[lane] == l->max_frames[lane] + 1 ? l->eos : id;
}

/* As lanes._marked: forced markers in a lane's ids [books]; where its segment ends. */
static int64_t mark(const lanes *l, int64_t lane, int64_t *ids) {
    int64_t books = l->num_books, made = l->made[lane], end = l->end[lane], first = 0;
    for (int64_t book = made; book < books; book++) ids[book] = l->bos;
    while (first < books && ids[first] != l->eos) first++;
    if (end == 0 && first < books) end = made + books - first;
    for (int64_t book = 0; end && book < least(books, made + books - end); book++) ids[book] = l->eos;
    return end;
}

/* As lanes.next_columns: the codes that are remembered, [books, width], a column later. */
static void remember(const lanes *l, int64_t lane, const int64_t *ids, int64_t *recent) {
    int64_t width = l->window_width;
    const int64_t *before = l->recent + lane * l->num_books * width;
    for (int64_t book = 0; book < l->num_books; book++) {
        memcpy(recent + book * width, before + book * width + 1, (width - 1) * sizeof *recent);
        recent[book * width + width - 1] = ids[book] >= l->bos ? -1 : ids[book];
    }
}

/* Bytes of working memory that `next_columns` needs. */
int64_t choice_workspace(int64_t num_lanes, int64_t num_books, int64_t num_ids, int64_t threads) {
    int64_t each = padded(num_ids) * (4 * sizeof(float) + sizeof(int32_t) + sizeof(candidate));
    return threads * each + num_lanes * num_books * sizeof(int64_t);
}

/* logits [rows, books, ids] to made [lanes, books + 3]: the column, where its segment ends, whether it is the last one,
 * and whether its logits were numbers; and to the codes remembered, recent [lanes, books, width].
 */
void next_columns(const lanes *l, const float *logits, int64_t *made, int64_t *recent, void *work, int64_t threads) {
    const int64_t books = l->num_books, size = padded(l->num_ids), count = l->num_lanes * books;
    int64_t *finite = work;
    char *own = (char *)(finite + count);
#pragma omp parallel num_threads(threads)
    {
        const int64_t number = thread_number();
        float *floats = (float *)(own + number * size * (4 * sizeof(float) + sizeof(int32_t) + sizeof(candidate)));
        candidate *order = (candidate *)(floats + 4 * size);
        scratch s = {floats, floats + size, floats + 2 * size, floats + 3 * size, (int32_t *)(order + size), order};
#pragma omp for schedule(static)
        for (int64_t one = 0; one < count; one++) {
            int64_t lane = one / books, book = one % books;
            made[lane * (books + 3) + book] = next_id(l, lane, book, logits, &s, finite + one);
        }
#pragma omp for schedule(static)
        for (int64_t lane = 0; lane < l->num_lanes; lane++) {
            int64_t *column = made + lane * (books + 3), is_finite = 1;
            for (int64_t book = 0; book < books; book++) is_finite &= finite[lane * books + book];
            column[books] = mark(l, lane, column);
            column[books + 1] = column[books] > 0 && l->made[lane] + 1 >= column[books];
            column[books + 2] = is_finite;
            remember(l, lane, column, recent + lane * books * l->window_width);
        }
    }
}
