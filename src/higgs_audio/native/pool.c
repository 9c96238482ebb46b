/* A pool of threads that take pieces of work as they come.
 *
 * Nobody is waited for but a thread that has taken a piece: the caller runs all pieces that no other thread takes, and whoever
 * finishes the last piece of a stage opens the next one. A stage of one piece is run at once by that thread.
 *
 * On a busy machine, a thread may lose its core within a piece, and the others then wait for it: first they spin, then they
 * sleep. A helper that takes part of the time of a session or container also leaves its caller less. So a caller that was without
 * a core, for whatever reason, works alone for ALONE_FACTOR times as long, and the helpers sleep meanwhile: beside other
 * processes, a program with many threads takes hardly longer than with one. A helper that the system has put on the core of a
 * caller moves to another one, and spins on none that a caller uses.
 */

#define _GNU_SOURCE /* sched_getcpu */

#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "export.h"

#define MAX_JOBS 16     /* programs that the pool runs at once; the callers of any more work alone */
#define MAX_HELPERS 255 /* threads of the pool */
#define STACK_SIZE (256 << 10)
#ifndef ALONE_FACTOR
#define ALONE_FACTOR 32
#endif
/* Times in ns. */
#define SPIN_IN_A_STAGE 100000      /* several times what a thread takes at once */
#define SPIN_BETWEEN_PROGRAMS 500000 /* a decode step follows the one before it after 200,000 */
#define SHORTEST_LOSS 50000         /* an interrupt takes less */
#define LONGEST_ALONE 1000000000
#define ALONE_ON_A_CORE 100000000   /* where there is only one core */

/* The bits of `job.state`: 0 if the job is free. */
#define HELPERS 0xffff       /* helpers in the job */
#define WANTED_SHIFT 16      /* the number of helpers wanted, 8 bits */
#define OPEN (1u << 24)      /* helpers may join, and take pieces */
#define TAKEN (1u << 25)     /* a caller uses the job */

/* The bits of `job.cursor`: the current stage, its number of pieces, and the next piece that nobody has taken. */
#define FIELD 20
#define MASK ((1 << FIELD) - 1)
#define FINISHED UINT64_MAX

typedef struct {
    _Alignas(64) atomic_uint state;
    _Alignas(64) _Atomic uint64_t cursor;
    _Alignas(64) atomic_llong unfinished; /* pieces of the current stage */
    atomic_int sleepers;                  /* threads that sleep until the cursor changes */
    program work;
    pthread_mutex_t lock;
    pthread_cond_t moved;
} job;

static job jobs[MAX_JOBS];
static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t pool_called = PTHREAD_COND_INITIALIZER;
static atomic_int num_helpers;       /* written under pool_lock */
static atomic_uint calls;            /* changes when a job is opened */
static atomic_int idle_sleepers;     /* helpers that sleep until it does */
static _Atomic int64_t alone_until;  /* ns; callers work alone until then */
static atomic_int caller_core = -1;  /* the core on which a caller ran last */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* The number of the core that runs this thread; -2 where that is not known. */
static int this_core(void) {
#ifdef __linux__
    return sched_getcpu();
#else
    return -2;
#endif
}

static int is_on_core_of_caller(void) {
    int core = this_core();
    return core >= 0 && core == atomic_load_explicit(&caller_core, memory_order_relaxed);
}

/* The time of a clock, in ns. */
static int64_t read_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static int64_t now(void) { return read_clock(CLOCK_MONOTONIC); }

/* Whether `value` changes from `old` within a time, in ns; gives up as soon as `is_hopeless`. */
#define CHANGES(value, old, duration, is_hopeless) ({ \
    int64_t stop = 0; \
    int has_changed; \
    for (int spins = 1; !(has_changed = atomic_load(&value) != old); spins++) { \
        relax(); \
        if (spins % 32) continue; \
        if (!stop) stop = now() + duration; \
        else if (now() >= stop) break; \
        if (is_hopeless) break; \
    } \
    has_changed; \
})

static unsigned wanted(unsigned state) { return state >> WANTED_SHIFT & 0xff; }
static uint64_t first_of(int64_t stage, int64_t pieces) { return (uint64_t)stage << 2 * FIELD | (uint64_t)pieces << FIELD; }
static int64_t stage_of(uint64_t cursor) { return cursor >> 2 * FIELD; }
static int64_t pieces_of(uint64_t cursor) { return cursor >> FIELD & MASK; }
static int64_t next_of(uint64_t cursor) { return cursor & MASK; }
static int has_pieces(uint64_t cursor) { return cursor != FINISHED && next_of(cursor) < pieces_of(cursor); }

/* Moves the cursor and wakes the threads that wait for it. */
static void move(job *j, uint64_t cursor) {
    atomic_store(&j->cursor, cursor);
    if (!atomic_load(&j->sleepers)) return;
    pthread_mutex_lock(&j->lock);
    pthread_cond_broadcast(&j->moved);
    pthread_mutex_unlock(&j->lock);
}

/* Opens the next stage of several pieces after `stage`; runs the stages of one piece before it. */
static void advance(job *j, int64_t stage, void *scratch) {
    for (;;) {
        int64_t pieces = j->work.count(j->work.context, ++stage);
        if (pieces == END) return move(j, FINISHED);
        if (pieces <= 1 || pieces > MASK) {
            for (int64_t piece = 0; piece < pieces; piece++) j->work.run(j->work.context, stage, piece, scratch);
            continue;
        }
        atomic_store_explicit(&j->unfinished, pieces, memory_order_relaxed);
        return move(j, first_of(stage, pieces));
    }
}

/* Takes pieces and runs them: a share of those left that leaves some for the others of `threads`, so that they finish
 * together, or all of them for one thread. Returns whether there were any. */
static int run_share(job *j, void *scratch, int64_t threads) {
    uint64_t cursor = atomic_load(&j->cursor), share;
    do {
        if (!has_pieces(cursor)) return 0;
        int64_t left = pieces_of(cursor) - next_of(cursor);
        share = threads == 1 ? left : left > 2 * threads ? left / (2 * threads) : 1;
    } while (!atomic_compare_exchange_weak(&j->cursor, &cursor, cursor + share));
    for (uint64_t n = 0; n < share; n++) j->work.run(j->work.context, stage_of(cursor), next_of(cursor) + n, scratch);
    if (atomic_fetch_sub(&j->unfinished, share) == (int64_t)share) advance(j, stage_of(cursor), scratch);
    return 1;
}

/* Sleeps until the cursor is not the given one. */
static void sleep_at(job *j, uint64_t cursor) {
    pthread_mutex_lock(&j->lock);
    atomic_fetch_add(&j->sleepers, 1);
    while (atomic_load(&j->cursor) == cursor) pthread_cond_wait(&j->moved, &j->lock);
    atomic_fetch_sub(&j->sleepers, 1);
    pthread_mutex_unlock(&j->lock);
}

/* Lets callers work alone for a time, in ns, or for longer if they do already. */
static void work_alone(int64_t duration) {
    int64_t until = now() + (duration < LONGEST_ALONE ? duration : LONGEST_ALONE), before = atomic_load(&alone_until);
    while (before < until && !atomic_compare_exchange_weak(&alone_until, &before, until)) continue;
}

/* Helpers. */

/* Joins a job that wants helpers; NULL if there is none. */
static job *join(void) {
    for (job *j = jobs; j < jobs + MAX_JOBS; j++) {
        unsigned state = atomic_load(&j->state);
        while (state & OPEN && (state & HELPERS) < wanted(state) && atomic_load(&j->cursor) != FINISHED)
            if (atomic_compare_exchange_weak(&j->state, &state, state + 1)) return j;
    }
    return NULL;
}

/* Grows the working memory of a helper. Returns whether it is large enough. */
static int reserve(void **scratch, int64_t *size, int64_t needed) {
    if (needed <= *size) return 1;
    free(*scratch);
    *scratch = aligned_alloc(64, (needed + 63) / 64 * 64);
    *size = *scratch ? needed : 0;
    return *scratch != NULL;
}

/* Takes pieces of a job while it is open. */
static void help(job *j, void *scratch) {
    for (unsigned state; (state = atomic_load(&j->state)) & OPEN;) {
        uint64_t cursor = atomic_load(&j->cursor);
        if (cursor == FINISHED) return;
        if (run_share(j, scratch, 1 + wanted(state)) || has_pieces(cursor)) continue;
        if (!CHANGES(j->cursor, cursor, SPIN_IN_A_STAGE, is_on_core_of_caller())) sleep_at(j, cursor);
    }
}

/* Waits until a job has been opened since `seen`. */
static void wait_for_call(unsigned seen) {
    if (CHANGES(calls, seen, SPIN_BETWEEN_PROGRAMS, is_on_core_of_caller())) return;
    pthread_mutex_lock(&pool_lock);
    atomic_fetch_add(&idle_sleepers, 1);
    while (atomic_load(&calls) == seen) pthread_cond_wait(&pool_called, &pool_lock);
    atomic_fetch_sub(&idle_sleepers, 1);
    pthread_mutex_unlock(&pool_lock);
}

/* Leaves the core of a caller for another one of `cores`, those that the system allows; if there is none, callers work alone
 * for a while. */
#ifdef __linux__
static void leave_core_of_caller(const cpu_set_t *cores) {
    cpu_set_t others = *cores;
    CPU_CLR(this_core(), &others);
    if (!CPU_COUNT(&others) || sched_setaffinity(0, sizeof others, &others)) work_alone(ALONE_ON_A_CORE);
}
#endif

static void *helper(void *unused) {
#ifdef __linux__
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores)) CPU_ZERO(&cores); /* more cores than a set has */
#endif
    void *scratch = NULL;
    int64_t size = 0;
    for (;;) {
        unsigned seen = atomic_load(&calls);
#ifdef __linux__
        if (is_on_core_of_caller()) leave_core_of_caller(&cores);
#endif
        for (job *j = join(); j; j = join()) {
            int is_ready = reserve(&scratch, &size, j->work.scratch_size);
            if (is_ready) help(j, scratch);
            atomic_fetch_sub(&j->state, 1);
            if (!is_ready) break;
        }
        wait_for_call(seen);
    }
    return unused;
}

/* Starts helpers until there are `count`, or the system refuses. They take no signals: those are for Python's threads. */
static void start_helpers(int64_t count) {
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    if (atomic_load(&num_helpers) >= count) return;
    sigfillset(&all);
    pthread_mutex_lock(&pool_lock);
    if (num_helpers < count && !pthread_attr_init(&attributes)) {
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, STACK_SIZE);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        while (num_helpers < count && !pthread_create(&thread, &attributes, helper, NULL)) num_helpers++;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
    }
    pthread_mutex_unlock(&pool_lock);
}

/* The pool before its first use. A child process begins with it too, because it has none of its parent's threads. */
static void reset(void) {
    pthread_mutex_init(&pool_lock, NULL);
    pthread_cond_init(&pool_called, NULL);
    num_helpers = 0;
    atomic_store(&idle_sleepers, 0);
    for (job *j = jobs; j < jobs + MAX_JOBS; j++) {
        atomic_store(&j->state, 0);
        atomic_store(&j->cursor, FINISHED);
        atomic_store(&j->sleepers, 0);
        pthread_mutex_init(&j->lock, NULL);
        pthread_cond_init(&j->moved, NULL);
    }
}

static void set_up(void) {
    reset();
    pthread_atfork(NULL, NULL, reset);
}

/* Callers. */

/* Takes a free job; NULL if there is none. */
static job *take(void) {
    for (job *j = jobs; j < jobs + MAX_JOBS; j++) {
        unsigned nobody = 0;
        if (!atomic_load(&j->state) && atomic_compare_exchange_strong(&j->state, &nobody, TAKEN)) return j;
    }
    return NULL;
}

/* Lets helpers join a job, and wakes those that sleep. */
static void call_helpers(job *j, int64_t helpers) {
    start_helpers(helpers);
    atomic_store(&caller_core, this_core());
    atomic_fetch_or(&j->state, OPEN | (unsigned)helpers << WANTED_SHIFT);
    atomic_fetch_add(&calls, 1);
    if (!atomic_load(&idle_sleepers)) return;
    pthread_mutex_lock(&pool_lock);
    pthread_cond_broadcast(&pool_called);
    pthread_mutex_unlock(&pool_lock);
}

/* Lets helpers leave a job after the piece that they run. */
static void dismiss_helpers(job *j) { atomic_fetch_and(&j->state, TAKEN | HELPERS); }

/* Whether callers work alone at present. */
static int is_alone(void) {
    int64_t until = atomic_load(&alone_until);
    if (!until) return 0;
    if (now() < until) return 1;
    atomic_compare_exchange_strong(&alone_until, &until, 0);
    return 0;
}

/* The time in which this thread had no core: the difference is 0 between two calls without a loss. */
static int64_t time_without_core(void) { return read_clock(CLOCK_MONOTONIC) - read_clock(CLOCK_THREAD_CPUTIME_ID); }

/* Works alone for a while if this thread had no core since `before`. Returns `time_without_core`. */
static int64_t note_loss(int64_t before) {
    int64_t after = time_without_core();
    if (after - before > SHORTEST_LOSS) work_alone((after - before) * ALONE_FACTOR);
    return after;
}

/* Runs the pieces that helpers do not take, until the program is finished. */
static void run_job(job *j, void *scratch, int64_t threads) {
    int64_t without_core = time_without_core();
    for (int is_open = 0;;) {
        uint64_t cursor = atomic_load(&j->cursor);
        if (cursor == FINISHED) break;
        int wants_help = !is_alone();
        if (is_open && !wants_help) dismiss_helpers(j);
        if (!is_open && wants_help) call_helpers(j, threads - 1);
        is_open = wants_help;
        if (run_share(j, scratch, is_open ? threads : 1) || has_pieces(cursor)) continue;
        if (CHANGES(j->cursor, cursor, SPIN_IN_A_STAGE, 0)) continue;
        sleep_at(j, cursor);
        without_core = note_loss(without_core);
    }
    note_loss(without_core);
}

static void run_alone(const program *p, void *scratch) {
    int64_t pieces;
    for (int64_t stage = 0; (pieces = p->count(p->context, stage)) != END; stage++)
        for (int64_t piece = 0; piece < pieces; piece++) p->run(p->context, stage, piece, scratch);
}

void run_program(const program *p, void *scratch, int64_t threads) {
    pthread_once(&once, set_up);
    job *j = threads > 1 ? take() : NULL;
    if (!j) return run_alone(p, scratch);
    j->work = *p;
    advance(j, -1, scratch);
    run_job(j, scratch, threads <= MAX_HELPERS ? threads : MAX_HELPERS + 1);
    atomic_fetch_and(&j->state, HELPERS); /* free when the last helper leaves */
}
