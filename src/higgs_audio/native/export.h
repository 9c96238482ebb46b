/* Marks the functions that Python calls; -fvisibility=hidden hides all others. Exported names begin with higgs_. */

#pragma once

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Exports the size of a structure, which library.py compares with the size of its ctypes mirror. */
#define EXPORT_SIZEOF(type) \
    EXPORT int64_t higgs_sizeof_##type(void) { return sizeof(type); }
