#include "cpu.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

bool backend_open_cpu(backend **on, hpa_dtype number, failure *why)
{
    int64_t bytes = number == HPA_F64 ? sizeof(double) : sizeof(float);
    cpu_backend *self = calloc(1, sizeof *self);
    *on = self ? &self->base : NULL;
    if (!self)
        return fail(why, "out of memory");
    self->base = (backend){.op = number == HPA_F64 ? &cpu_operations_f64 : &cpu_operations_f32,
                           .device = HPA_CPU,
                           .place = "this machine",
                           .number = number,
                           .operand = number,
                           .number_bytes = bytes,
                           .operand_bytes = bytes};
    self->current = PHASE_REST;
    return true;
}

void cpu_close(backend *on)
{
    free(on);
}

/* Memory */

/* Before a block: its size, and room up to the block's alignment. */
enum { ALIGNMENT = 256 };

void *cpu_allocate(backend *on, int64_t bytes)
{
    int64_t all = ALIGNMENT + (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    char *block = aligned_alloc(ALIGNMENT, (size_t)all);
    if (!block)
        return NULL;
    memset(block, 0, (size_t)all);
    memcpy(block, &bytes, sizeof bytes);
    on->allocated += bytes;
    on->peak = on->allocated > on->peak ? on->allocated : on->peak;
    return block + ALIGNMENT;
}

void cpu_release(backend *on, void *memory)
{
    if (!memory)
        return;
    char *block = (char *)memory - ALIGNMENT;
    int64_t bytes;
    memcpy(&bytes, block, sizeof bytes);
    on->allocated -= bytes;
    free(block);
}

/* Under a limit of the address space OpenBLAS's buffer and the heap of each thread count as well,
 * and OpenBLAS waits for ever for a buffer that it cannot have. */
int64_t cpu_available(backend *on)
{
    (void)on;
    const int64_t of_a_thread = 192 << 20;
    int64_t memory = (int64_t)sysconf(_SC_PHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        int64_t rest = (int64_t)limit.rlim_cur - (omp_get_max_threads() + 1) * of_a_thread;
        memory = rest < memory ? rest : memory;
    }
    return memory > 0 ? memory : 0;
}

void cpu_clear(backend *on, void *to, int64_t bytes)
{
    (void)on;
    memset(to, 0, (size_t)bytes);
}

void cpu_copy(backend *on, void *to, const void *from, int64_t bytes)
{
    (void)on;
    memcpy(to, from, (size_t)bytes);
}

bool cpu_read(backend *on, void *host, const void *from, int64_t bytes, failure *why)
{
    (void)why;
    cpu_copy(on, host, from, bytes);
    return true;
}

/* The clock */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

phase cpu_enter(backend *on, phase next)
{
    cpu_backend *self = (cpu_backend *)on;
    phase before = self->current;
    double time = now();
    self->seconds[before] += time - self->since;
    self->since = time;
    self->current = next;
    return before;
}

bool cpu_read_clock(backend *on, double seconds[N_PHASES], failure *why)
{
    cpu_backend *self = (cpu_backend *)on;
    (void)why;
    cpu_enter(on, self->current);
    memcpy(seconds, self->seconds, sizeof self->seconds);
    memset(self->seconds, 0, sizeof self->seconds);
    return true;
}
