/* A linear map of rows, on a CPU; see linear.py. */

#include "export.h"
#include "matrix.h"
#include "pool.h"

typedef struct {
    const matrix *m;
    int64_t is_bfloat16, rows;
    const float *bias, *x; /* [out] or NULL; [rows, in] */
    float *result;         /* [rows, out] */
} linear;

static int64_t count_pieces(const void *context, int64_t stage) {
    const linear *all = context;
    return stage ? END : num_tiles(all->rows, all->m->out);
}

static void run_piece(const void *context, int64_t stage, int64_t piece, void *buffer) {
    const linear *all = context;
    const int64_t out = all->m->out;
    const tile t = find_tile(all->rows, out, piece);
    (void)stage;
    multiply_to(all->m, all->is_bfloat16, all->x, all->rows, piece, buffer, all->result);
    if (!all->bias) return;
    const int64_t stop = minimum(t.o + outputs_at_once(all->rows), out);
    for (int64_t r = t.first; r < t.first + t.rows; r++)
        for (int64_t o = t.o; o < stop; o++) all->result[r * out + o] += all->bias[o];
}

static int64_t buffer_floats(int64_t rows) { return minimum(rows, GROUP) * outputs_at_once(rows); }

/* Floats of working memory that `higgs_linear` needs. */
EXPORT int64_t higgs_linear_workspace(int64_t rows) { return buffer_floats(rows); }

/* Maps x [rows, in] to result [rows, out]; bias may be NULL. */
EXPORT void higgs_linear(
    const matrix *m, int64_t is_bfloat16, const float *bias, const float *x, int64_t rows, float *result, float *work,
    int64_t threads) {
    linear all = {m, is_bfloat16, rows, bias, x, result};
    program tiles = {count_pieces, run_piece, &all, buffer_floats(rows) * sizeof(float)};
    if (rows) run_program(&tiles, work, threads);
}
