/* Matrices, packed. */

#include "matrix.h"

/* Outputs of a panel: what a matrix is filled up to. */
int64_t panel(void) { return PANEL; }

/* A matrix [out, in] in panels, filled up with zeros; with is_half as bfloat16, its numbers being such. */
void pack(const float *weight, int64_t out, int64_t in, int64_t is_half, void *panels) {
    for (int64_t o = 0; o < (out + PANEL - 1) / PANEL * PANEL; o++)
        for (int64_t i = 0; i < in; i++) {
            int64_t line = (o / PANEL * in + i) * PANEL, n = o % PANEL;
            int64_t place = line + (is_half ? n % LANES * 2 + n / LANES : n);
            float value = o < out ? weight[o * in + i] : 0;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            if (is_half) ((uint16_t *)panels)[place] = bits >> 16;
            else ((float *)panels)[place] = value;
        }
}
