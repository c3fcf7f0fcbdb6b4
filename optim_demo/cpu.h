/* The CPU as a backend: what its operations, compiled for each type of number, share with the
 * function that opens it. */
#ifndef DEMO_CPU_H
#define DEMO_CPU_H

#include "backend.h"

typedef struct cpu_backend {
    backend base;
    phase current; /* and since when */
    double since;
    double seconds[N_PHASES];
} cpu_backend;

extern const operations cpu_operations_f32, cpu_operations_f64;

/* Of every type of number. */
void cpu_close(backend *on);
void *cpu_allocate(backend *on, int64_t bytes);
void cpu_release(backend *on, void *memory);
int64_t cpu_available(backend *on);
void cpu_clear(backend *on, void *to, int64_t bytes);
void cpu_copy(backend *on, void *to, const void *from, int64_t bytes);
bool cpu_read(backend *on, void *host, const void *from, int64_t bytes, failure *why);
phase cpu_enter(backend *on, phase next);
bool cpu_read_clock(backend *on, double seconds[N_PHASES], failure *why);

#endif
