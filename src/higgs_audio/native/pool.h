/* A pool of threads for programs: sequences of stages, each a number of independent pieces; see pool.c. */

#pragma once

#include <stdint.h>

#define END (-1)

/* The pieces follow from the shapes alone, never from the number of threads, so that the result does not depend on it. */
typedef struct {
    int64_t (*count)(const void *context, int64_t stage); /* pieces of a stage from 0 on; END after the last stage */
    void (*run)(const void *context, int64_t stage, int64_t piece, void *scratch);
    const void *context;
    int64_t scratch_size; /* bytes of working memory of a thread, at `scratch` */
} program;

/* Runs a program, with the help of up to threads - 1 threads of the pool. A stage begins when all pieces of the stage before
 * it are done. `scratch` is the working memory of the calling thread. */
void run_program(const program *p, void *scratch, int64_t threads);
