/* Packing of matrices. */

#include "export.h"
#include "matrix.h"

EXPORT_SIZEOF(matrix)

/* Outputs of a panel; packed matrices are padded to a multiple of it. */
EXPORT int64_t higgs_panel_size(void) { return PANEL; }

/* Packs a matrix [out, in] into panels, padded with zeros; with is_bfloat16 its values must be exact in bfloat16. */
EXPORT void higgs_pack_matrix(const float *weight, int64_t out, int64_t in, int64_t is_bfloat16, void *panels) {
    for (int64_t o = 0; o < (out + PANEL - 1) / PANEL * PANEL; o++)
        for (int64_t i = 0; i < in; i++) {
            int64_t line = (o / PANEL * in + i) * PANEL, n = o % PANEL;
            int64_t index = line + (is_bfloat16 ? n % LANES * 2 + n / LANES : n);
            float value = o < out ? weight[o * in + i] : 0;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            if (is_bfloat16) ((uint16_t *)panels)[index] = bits >> 16;
            else ((float *)panels)[index] = value;
        }
}
