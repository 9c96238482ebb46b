/* Stresses the thread pool; test_pool.py compiles this file with pool.c, with and without ThreadSanitizer.
 *
 *     pool_stress CALLERS THREADS ROUNDS STALLS FORKS
 *
 * Each caller runs ROUNDS programs. The stages of a program have 0 to 40 pieces, and each piece adds to its own cell a function
 * of the cells of the stage before, so any piece that is left out, doubled or early changes the sum. With STALLS, pieces sleep
 * or yield now and then. With FORKS, children that are forked meanwhile run a program of their own. Exits with 1 after a wrong
 * result.
 */

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pool.h"

#define STAGES 12
#define PIECES 40
#define SCRATCH 64

typedef struct {
    int64_t counts[STAGES];
    uint64_t cells[STAGES + 1][PIECES];
    unsigned seed;
    int stalls;
} work;

static int num_threads, num_rounds, num_failures;

static unsigned mix(unsigned x) {
    x ^= x >> 16, x *= 0x7feb352d, x ^= x >> 15, x *= 0x846ca68b;
    return x ^ x >> 16;
}

static int64_t count(const void *context, int64_t stage) { return stage < STAGES ? ((const work *)context)->counts[stage] : END; }

static void run(const void *context, int64_t stage, int64_t piece, void *scratch) {
    work *w = (work *)context;
    unsigned chance = mix(w->seed + 131 * stage + 7 * piece) % 100;
    memset(scratch, piece, SCRATCH); /* belongs to this thread */
    if (w->stalls && chance < 2) usleep(chance * 700);
    if (w->stalls && chance > 90) sched_yield();
    uint64_t sum = stage * PIECES + piece;
    for (int i = 0; i < PIECES; i++) sum += w->cells[stage][i] * (i + 1);
    w->cells[stage + 1][piece] += sum + ((unsigned char *)scratch)[SCRATCH - 1];
}

static void prepare(work *w, unsigned seed, int stalls) {
    memset(w, 0, sizeof *w);
    w->seed = seed, w->stalls = stalls;
    for (int s = 0; s < STAGES; s++) w->counts[s] = mix(seed + s) % 4 ? mix(seed * 31 + s) % (PIECES + 1) : s % 2;
    w->cells[0][seed % PIECES] = seed;
}

/* Whether a program has the same result with many threads and with one. */
static int is_right(unsigned seed, int stalls) {
    work *many = malloc(sizeof *many), *one = malloc(sizeof *one);
    char scratch[SCRATCH];
    program p = {count, run, many, SCRATCH};
    prepare(many, seed, stalls), prepare(one, seed, 0);
    run_program(&p, scratch, num_threads);
    p.context = one;
    run_program(&p, scratch, 1);
    int is_equal = !memcmp(many->cells, one->cells, sizeof many->cells);
    free(many), free(one);
    return is_equal;
}

static void *call(void *argument) {
    int64_t number = (int64_t)argument;
    for (int round = 0; round < num_rounds; round++)
        if (!is_right(number % 1000 * 1000003 + round, number >= 1000)) __atomic_add_fetch(&num_failures, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

/* Forks a child that uses the pool; returns whether it has the right result. */
static int has_child_right_result(unsigned seed) {
    int status;
    pid_t child = fork();
    if (!child) {
        alarm(20);
        _exit(!is_right(seed, 0) || !is_right(seed + 1, 0));
    }
    return waitpid(child, &status, 0) == child && status == 0;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    const int callers = atoi(argv[1]), stalls = atoi(argv[4]), forks = atoi(argv[5]);
    num_threads = atoi(argv[2]), num_rounds = atoi(argv[3]);
    pthread_t threads[64];
    for (int64_t n = 0; n < callers; n++) pthread_create(&threads[n], NULL, call, (void *)(n + 1000 * stalls));
    for (int n = 0; n < forks; n++) num_failures += !has_child_right_result(n);
    for (int n = 0; n < callers; n++) pthread_join(threads[n], NULL);
    if (num_failures) printf("%d programs of %d had a wrong result\n", num_failures, callers * num_rounds + forks);
    return num_failures > 0;
}
