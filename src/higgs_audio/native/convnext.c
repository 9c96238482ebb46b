/* A ConvNeXt block on rows, on a CPU; see codec/blocks.py.
 *
 * Rows are taken in tiles that stay in a core's cache through all of the block, so that cores need not wait for one
 * another. A row's numbers do not depend on the others.
 */

#include "matrix.h"

#define TILE 48 /* rows: 48 of 1,152 floats are 221 kB */

typedef struct {
    int64_t width, kernel, before, is_half; /* `before` of the kernel lie to the left of a row */
    const float *depthwise, *around;        /* [kernel, width], and its bias [width] */
    const float *norm, *offset;             /* of the layer norm [width] */
    matrix expand, contract;
    const float *expanded, *contracted; /* their biases */
    const float *scale;                 /* [width] */
    float eps;
} block;

/* Rows at `start` to `start + kernel` of wide [rows, width], convolved and normed. */
static void look_around(const block *b, const float *wide, float *result) {
    int64_t width = b->width;
    vec total = {0}, square = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        vec x = *(const vec *)(b->around + i);
        for (int64_t k = 0; k < b->kernel; k++)
            x += *(const vec *)(wide + k * width + i) * *(const vec *)(b->depthwise + k * width + i);
        *(vec *)(result + i) = x;
        total += x;
    }
    float mean = sum(total) / width;
    for (int64_t i = 0; i < width; i += LANES) {
        vec x = *(vec *)(result + i) -= mean;
        square += x * x;
    }
    float factor = 1 / sqrtf(sum(square) / width + b->eps);
    for (int64_t i = 0; i < width; i += LANES)
        *(vec *)(result + i) = *(vec *)(result + i) * factor * *(const vec *)(b->norm + i) + *(const vec *)(b->offset + i);
}

/* GELU by the tanh: x times the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3). */
static inline vec gelu(vec x) { return x / (1.0f + exponential(-1.5957691f * (x + 0.044715f * x * x * x))); }

/* Rows x [rows, width] to inner [rows, expand.out]. */
static void expand(const block *b, const float *x, int64_t rows, float *few, float *inner) {
    for (int64_t o = 0; o < b->expand.out; o += width_of(rows)) {
        int64_t made = outputs(&b->expand, b->is_half, x, rows, o, few), count = least(made, b->expand.out - o);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i += LANES)
                *(vec *)(inner + r * b->expand.out + o + i) =
                    gelu(*(const vec *)(few + r * made + i) + *(const vec *)(b->expanded + o + i));
    }
}

/* Rows inner [rows, expand.out] to result [rows, width], added to the middle of what was around them. */
static void contract(
    const block *b, const float *inner, int64_t rows, const float *wide, const int64_t *starts, float *few, float *result) {
    for (int64_t o = 0; o < b->width; o += width_of(rows)) {
        int64_t made = outputs(&b->contract, b->is_half, inner, rows, o, few), count = least(made, b->width - o);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i += LANES) {
                vec y = *(const vec *)(few + r * made + i) + *(const vec *)(b->contracted + o + i);
                vec x = *(const vec *)(wide + (starts[r] + b->before) * b->width + o + i);
                *(vec *)(result + r * b->width + o + i) = x + *(const vec *)(b->scale + o + i) * y;
            }
    }
}

static int64_t tile_floats(const block *b) { return TILE * (b->width + b->expand.out + 2 * PANEL); }

/* Floats of working memory that `convnext` needs. */
int64_t convnext_workspace(const block *b, int64_t threads) { return threads * tile_floats(b); }

/* Rows of wide [any, width] to result [count, width]; each sees `kernel` rows from its start on. */
void convnext(
    const block *b, const float *wide, const int64_t *starts, int64_t count, float *result, float *work, int64_t threads) {
    if (!count) return;
    int64_t each = (count + threads - 1) / threads, size = least(TILE, (each + BLOCK - 1) / BLOCK * BLOCK);
#pragma omp parallel num_threads(threads)
    {
        const int64_t number = thread_number();
        float *normed = work + number * tile_floats(b), *inner = normed + TILE * b->width;
        float *few = inner + TILE * b->expand.out;
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < count; first += size) {
            int64_t rows = least(size, count - first);
            for (int64_t r = 0; r < rows; r++)
                look_around(b, wide + starts[first + r] * b->width, normed + r * b->width);
            expand(b, normed, rows, few, inner);
            contract(b, inner, rows, wide, starts + first, few, result + first * b->width);
        }
    }
}
