/* The elementwise work of a harmonic head, on a CPU; see codec/harmonic.py, whose `pulses` and `mix` do the same in torch in
 * twenty passes over memory. */

#include "export.h"
#include "pool.h"
#include "vectors.h"

#define ROWS 8 /* rows of a piece: about 10 us */

/* The nearest integer of x, |x| < 2^22. */
static inline vec nearest(vec x) { return (x + 12582912.0f) - 12582912.0f; }

/* sin(pi x) for any x, |x| < 2^22: a polynomial in the distance to the nearest integer. */
static inline vec sine(vec x) {
    vec n = nearest(x * 0.5f) * 2.0f, y = x - n;                       /* -1 to 1 */
    y = where(y > 0.5f, 1.0f - y, where(y < -0.5f, -1.0f - y, y));     /* -0.5 to 0.5 */
    vec s = y * y, p = s * -7.0283864e-3f + 8.2050402e-2f;
    p = s * p - 5.9925220e-1f;
    p = s * p + 2.5501633f;
    p = s * p - 5.1677128f;
    p = s * p + 3.1415927f; /* the error of the sine is 2 in 10^7 */
    return y * p;
}

static int64_t count_pieces(int64_t rows, int64_t stage) { return stage ? END : (rows + ROWS - 1) / ROWS; }

/* Pulses. */

typedef struct {
    const float *cycles, *hz, *voiced, *window;
    int64_t rows, length;
    float sample_rate, min_sine;
    float *frames;
} pulses;

/* One frame: all harmonics below the Nyquist frequency, as a Dirichlet kernel, times the window. */
static void pulse_frame(const pulses *p, int64_t r) {
    float count = floorf(p->sample_rate / 2 / p->hz[r]) - 1, loudness = p->voiced[r] * sqrtf(2 / count);
    for (int64_t i = 0; i < p->length; i += LANES) {
        vec offset;
        for (int n = 0; n < LANES; n++) offset[n] = (float)(i + n - p->length / 2) / p->sample_rate;
        vec x = p->cycles[r] + p->hz[r] * offset;
        x -= nearest(x);
        vec base = sine(x), ratio = sine((2 * count + 1) * x) / base;
        ints is_zero = (base < p->min_sine) & (base > -p->min_sine);
        vec total = where(is_zero, (vec){0} + count, (ratio - 1.0f) * 0.5f);
        *(vec *)(p->frames + r * p->length + i) = total * loudness * *(const vec *)(p->window + i);
    }
}

static int64_t count_frames(const void *context, int64_t stage) { return count_pieces(((const pulses *)context)->rows, stage); }

static void run_frames(const void *context, int64_t stage, int64_t piece, void *scratch) {
    const pulses *p = context;
    (void)stage, (void)scratch;
    for (int64_t r = piece * ROWS; r < minimum((piece + 1) * ROWS, p->rows); r++) pulse_frame(p, r);
}

/* Writes windowed frames [rows, length] for cycles, hz and voiced [rows]; length is a multiple of 16. */
EXPORT void higgs_pulses(
    const float *cycles, const float *hz, const float *voiced, const float *window, int64_t rows, int64_t length,
    float sample_rate, float min_sine, float *frames, int64_t threads) {
    pulses p = {cycles, hz, voiced, window, rows, length, sample_rate, min_sine, frames};
    program all = {count_frames, run_frames, &p, 64};
    run_program(&all, (char[64]){0}, threads);
}

/* Mixing. */

typedef struct {
    const float *filters, *spectra, *noise; /* [rows, 3, bins], [rows, bins, 2], [any, bins, 2] */
    const int64_t *numbers;                 /* [rows] rows of the noise */
    int64_t rows, bins;
    float ceiling;
    float *result; /* [rows, bins, 2] */
} mixing;

/* LANES bins of one row, from bin i on. */
static void mix_bins(const mixing *m, int64_t r, int64_t i) {
    const float *filters = m->filters + r * 3 * m->bins + i, *pulse = m->spectra + (r * m->bins + i) * 2;
    const float *noise = m->noise + (m->numbers[r] * m->bins + i) * 2;
    vec gain = *(const vec *)filters, hiss = *(const vec *)(filters + m->bins), phase = *(const vec *)(filters + 2 * m->bins);
    gain = exponential(where(gain > m->ceiling, (vec){0} + m->ceiling, gain));
    hiss = exponential(where(hiss > m->ceiling, (vec){0} + m->ceiling, hiss));
    vec real = gain * sine(phase * 0.31830989f + 0.5f), imaginary = gain * sine(phase * 0.31830989f);
    float *result = m->result + (r * m->bins + i) * 2;
    for (int n = 0; n < LANES; n++) {
        result[2 * n] = real[n] * pulse[2 * n] - imaginary[n] * pulse[2 * n + 1] + hiss[n] * noise[2 * n];
        result[2 * n + 1] = real[n] * pulse[2 * n + 1] + imaginary[n] * pulse[2 * n] + hiss[n] * noise[2 * n + 1];
    }
}

static int64_t count_mixed(const void *context, int64_t stage) { return count_pieces(((const mixing *)context)->rows, stage); }

static void run_mixed(const void *context, int64_t stage, int64_t piece, void *scratch) {
    const mixing *m = context;
    (void)stage, (void)scratch;
    for (int64_t r = piece * ROWS; r < minimum((piece + 1) * ROWS, m->rows); r++) {
        int64_t i = 0;
        for (; i + LANES <= m->bins; i += LANES) mix_bins(m, r, i);
        if (i < m->bins) mix_bins(m, r, m->bins - LANES); /* some bins again */
    }
}

/* Writes result [rows, bins], complex: the spectra times the first gain and the phase, plus the noise times the second gain;
 * bins is at least 16. */
EXPORT void higgs_mix(
    const float *filters, const float *spectra, const float *noise, const int64_t *numbers, int64_t rows, int64_t bins,
    float ceiling, float *result, int64_t threads) {
    mixing m = {filters, spectra, noise, numbers, rows, bins, ceiling, result};
    program all = {count_mixed, run_mixed, &m, 64};
    run_program(&all, (char[64]){0}, threads);
}
