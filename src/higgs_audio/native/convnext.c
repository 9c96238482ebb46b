/* A ConvNeXt block on rows, on a CPU; see codec/blocks.py.
 *
 * Rows are processed in tiles that stay in a core's cache through the whole block, so that cores do not wait for each
 * other. The result of a row does not depend on the other rows.
 */

#include "export.h"
#include "matrix.h"
#include "pool.h"

#define TILE 48 /* rows: 48 of 1,152 floats are 221 kB */

/* Mirrored by ConvNeXtStruct in structs.py. */
typedef struct {
    int64_t width, kernel, left_padding, is_bfloat16;
    const float *depthwise, *depthwise_bias; /* [kernel, width], [width] */
    const float *norm_weight, *norm_bias;    /* layer norm [width] */
    matrix expand, contract;
    const float *expand_bias, *contract_bias; /* [expand.out], [width] */
    const float *scale;                       /* [width] */
    float eps;
} convnext_block;

EXPORT_SIZEOF(convnext_block)

/* Depthwise convolution of wide [kernel, width], then layer norm, to result [width]. */
static void convolve_and_norm(const convnext_block *b, const float *wide, float *result) {
    int64_t width = b->width;
    vec total = {0}, square = {0};
    for (int64_t i = 0; i < width; i += LANES) {
        vec x = *(const vec *)(b->depthwise_bias + i);
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
    for (int64_t i = 0; i < width; i += LANES) {
        vec weight = *(const vec *)(b->norm_weight + i), bias = *(const vec *)(b->norm_bias + i);
        *(vec *)(result + i) = *(vec *)(result + i) * factor * weight + bias;
    }
}

/* GELU, tanh approximation: x times the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3). */
static inline vec gelu(vec x) { return x / (1.0f + exponential(-1.5957691f * (x + 0.044715f * x * x * x))); }

/* Maps x [rows, width] to inner [rows, expand.out]: linear layer and GELU. */
static void expand(const convnext_block *b, const float *x, int64_t rows, float *buffer, float *inner) {
    for (int64_t o = 0; o < b->expand.out; o += outputs_at_once(rows)) {
        int64_t stride = multiply(&b->expand, b->is_bfloat16, x, rows, o, buffer), count = minimum(stride, b->expand.out - o);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i += LANES)
                *(vec *)(inner + r * b->expand.out + o + i) =
                    gelu(*(const vec *)(buffer + r * stride + i) + *(const vec *)(b->expand_bias + o + i));
    }
}

/* Maps inner [rows, expand.out] to result [rows, width]: linear layer and scale, added to the center row of each window. */
static void contract(
    const convnext_block *b, const float *inner, int64_t rows, const float *wide, const int64_t *starts, float *buffer,
    float *result) {
    for (int64_t o = 0; o < b->width; o += outputs_at_once(rows)) {
        int64_t stride = multiply(&b->contract, b->is_bfloat16, inner, rows, o, buffer), count = minimum(stride, b->width - o);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i += LANES) {
                vec y = *(const vec *)(buffer + r * stride + i) + *(const vec *)(b->contract_bias + o + i);
                vec x = *(const vec *)(wide + (starts[r] + b->left_padding) * b->width + o + i);
                *(vec *)(result + r * b->width + o + i) = x + *(const vec *)(b->scale + o + i) * y;
            }
    }
}

static int64_t tile_floats(const convnext_block *b) { return TILE * (b->width + b->expand.out + 2 * PANEL); }

/* Floats of working memory that `higgs_convnext` needs. */
EXPORT int64_t higgs_convnext_workspace(const convnext_block *b) { return tile_floats(b); }

/* The arguments of `higgs_convnext`. */
typedef struct {
    const convnext_block *b;
    const float *wide;
    const int64_t *starts;
    int64_t count;
    float *result;
} convnext_rows;

/* Rows of a piece: a quarter of all, in blocks, but at most TILE. */
static int64_t piece_rows(int64_t count) { return minimum(TILE, ((count + 3) / 4 + BLOCK - 1) / BLOCK * BLOCK); }

static int64_t count_pieces(const void *context, int64_t stage) {
    const int64_t count = ((const convnext_rows *)context)->count, size = piece_rows(count);
    return stage ? END : (count + size - 1) / size;
}

static void run_piece(const void *context, int64_t stage, int64_t piece, void *scratch) {
    const convnext_rows *all = context;
    const convnext_block *b = all->b;
    const int64_t size = piece_rows(all->count), first = piece * size, rows = minimum(size, all->count - first);
    float *normed = scratch, *inner = normed + TILE * b->width, *buffer = inner + TILE * b->expand.out;
    (void)stage;
    for (int64_t r = 0; r < rows; r++)
        convolve_and_norm(b, all->wide + all->starts[first + r] * b->width, normed + r * b->width);
    expand(b, normed, rows, buffer, inner);
    contract(b, inner, rows, all->wide, all->starts + first, buffer, all->result + first * b->width);
}

/* Maps wide [any, width] to result [count, width]: row i is computed from the `kernel` rows from starts[i] on. */
EXPORT void higgs_convnext(
    const convnext_block *b, const float *wide, const int64_t *starts, int64_t count, float *result, float *work,
    int64_t threads) {
    convnext_rows rows = {b, wide, starts, count, result};
    program all = {count_pieces, run_piece, &rows, tile_floats(b) * sizeof(float)};
    if (count) run_program(&all, work, threads);
}
