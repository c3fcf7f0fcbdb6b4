/* Hostile bytes as compressed sparse rows, as lengths of a pack, and as a mask.
 *
 * hpa_mask_import_csr and hpa_mask_validate trust nothing that they read; what they accept must be
 * sound: it exports to what was imported, and every other call can run on it. */
#include "hpa/hpa.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Input, read from the front; zeros past its end. */
typedef struct reader {
    const uint8_t *data;
    size_t left;
} reader;

static uint8_t take_byte(reader *r)
{
    if (r->left == 0)
        return 0;
    r->left--;
    return *r->data++;
}

static int64_t take_word(reader *r)
{
    uint64_t word = 0;
    for (int n = 0; n < 8; n++)
        word = word << 8 | take_byte(r);
    return (int64_t)word;
}

/* One byte for a number near another; 0x80 announces eight for any number. */
static int64_t take_near(reader *r, int64_t other)
{
    const uint8_t byte = take_byte(r);
    return byte == 0x80 ? take_word(r) : (int64_t)((uint64_t)other + (uint64_t)(int8_t)byte);
}

static void expect(bool condition)
{
    if (!condition)
        abort();
}

/* Sizes beyond what the tiny shapes here can need are a bug, too. */
static void *allocate(size_t size)
{
    expect(size < (size_t)1 << 26);
    void *memory = calloc(1, size ? size : 1);
    expect(memory != NULL);
    return memory;
}

static void *allocate_array(int64_t count, size_t size)
{
    return allocate((size_t)count * size);
}

enum { MAX_BATCH = 3, HEAD_DIM = 8, MAX_BLOCKS = 4096 };

typedef struct problem {
    hpa_desc desc;
    hpa_plan *plan;
    hpa_sizes sizes;
    int32_t cu_q[MAX_BATCH + 1], cu_kv[MAX_BATCH + 1];
    hpa_inputs in;
    hpa_outputs out;
    hpa_gradients gradients;
    void *mask, *scratch;
    hpa_exec exec;
} problem;

static hpa_desc take_desc(reader *r)
{
    static const int32_t block_k[] = {16, 32, 64, 128};
    hpa_desc d = hpa_desc_default();
    const uint8_t flags = take_byte(r), shape = take_byte(r);
    d.packed = flags & 1;
    d.causal = flags & 2;
    d.training = flags & 4;
    d.share_heads = flags & 8;
    d.reference = flags & 16;
    d.block_k = block_k[flags >> 6];
    d.block_q = 16 << (shape & 1);
    d.batch = 1 + (shape >> 1) % MAX_BATCH;
    d.heads_kv = 1 + (shape >> 4 & 1);
    d.heads_q = d.heads_kv * (1 + (shape >> 5 & 1));
    d.head_dim = HEAD_DIM;
    d.num_threads = 1;
    d.seq_q = take_byte(r) % 100;
    d.seq_kv = take_byte(r) % 200;
    d.total_q = take_byte(r);
    d.total_kv = take_byte(r);
    d.top_k = take_byte(r) & 127;
    d.sink = take_byte(r) & 63;
    d.window = take_byte(r) & 63;
    return d;
}

static hpa_tensor tensor_of(const hpa_desc *d, bool of_queries, bool has_dim)
{
    const int64_t heads = of_queries ? d->heads_q : d->heads_kv;
    const int64_t length = of_queries ? d->seq_q : d->seq_kv;
    const int64_t total = of_queries ? d->total_q : d->total_kv;
    const int64_t dim = has_dim ? HEAD_DIM : 1;
    hpa_tensor t = {.dtype = HPA_F32, .ndim = has_dim};
    if (d->packed) {
        t.ndim += 2;
        t.shape[0] = total;
        t.shape[1] = heads;
        t.shape[2] = t.stride[1] = dim;
        t.stride[0] = heads * dim;
        t.stride[2] = 1;
        t.data = allocate_array(total * heads * dim, sizeof(float));
    } else {
        t.ndim += 3;
        t.shape[0] = d->batch;
        t.shape[1] = heads;
        t.shape[2] = length;
        t.shape[3] = t.stride[2] = dim;
        t.stride[1] = length * dim;
        t.stride[0] = heads * length * dim;
        t.stride[3] = 1;
        t.data = allocate_array(d->batch * heads * length * dim, sizeof(float));
    }
    return t;
}

static void new_tensors(problem *p)
{
    const hpa_desc *d = &p->desc;
    p->in.q = tensor_of(d, true, true);
    p->in.k = tensor_of(d, false, true);
    p->in.v = tensor_of(d, false, true);
    p->out.out = tensor_of(d, true, true);
    p->out.lse = tensor_of(d, true, false);
    p->gradients.d_out = tensor_of(d, true, true);
    p->gradients.dq = tensor_of(d, true, true);
    p->gradients.dk = tensor_of(d, false, true);
    p->gradients.dv = tensor_of(d, false, true);
    p->in.cu_seqlens_q = p->cu_q;
    p->in.cu_seqlens_kv = p->cu_kv;
}

static bool new_problem(problem *p, reader *r)
{
    *p = (problem){.desc = take_desc(r)};
    if (hpa_plan_create(&p->plan, &p->desc) != HPA_OK)
        return false;
    expect(hpa_plan_sizes(p->plan, &p->sizes) == HPA_OK);
    size_t most = p->sizes.mask_scratch;
    most = p->sizes.forward_scratch > most ? p->sizes.forward_scratch : most;
    most = p->sizes.backward_scratch > most ? p->sizes.backward_scratch : most;
    p->mask = allocate(p->sizes.mask);
    p->scratch = allocate(most);
    p->exec = (hpa_exec){.scratch = p->scratch, .scratch_bytes = most};
    new_tensors(p);
    for (int64_t b = 0; p->desc.packed && b < p->desc.batch; b++) {
        p->cu_q[b + 1] = (int32_t)take_near(r, p->cu_q[b]);
        p->cu_kv[b + 1] = (int32_t)take_near(r, p->cu_kv[b]);
    }
    return true;
}

static void free_problem(problem *p)
{
    hpa_tensor *const tensors[] = {&p->in.q,         &p->in.k,         &p->in.v,
                                   &p->out.out,      &p->out.lse,      &p->gradients.d_out,
                                   &p->gradients.dq, &p->gradients.dk, &p->gradients.dv};
    for (size_t n = 0; n < sizeof tensors / sizeof tensors[0]; n++)
        free(tensors[n]->data);
    free(p->mask);
    free(p->scratch);
    hpa_plan_destroy(p->plan);
}

/* Rows of the exchanged form; 0 where the lengths of the pack make no sense. */
static int64_t count_rows(const problem *p)
{
    const hpa_desc *d = &p->desc;
    const int64_t heads = d->share_heads ? d->heads_kv : d->heads_q;
    int64_t rows = 0;
    for (int64_t b = 0; b < d->batch; b++) {
        const int64_t length = d->packed ? (int64_t)p->cu_q[b + 1] - p->cu_q[b] : d->seq_q;
        if (length < 0 || length > d->seq_q)
            return 0;
        rows += heads * ((length + d->block_q - 1) / d->block_q);
    }
    return rows;
}

typedef struct csr {
    int64_t rows, count;
    int64_t *row_ptr;
    int32_t *blocks; /* exactly as many as row_ptr says, where that can be */
} csr;

static csr take_csr(const problem *p, reader *r)
{
    csr c = {.rows = count_rows(p)};
    c.row_ptr = allocate_array(c.rows + 1, sizeof *c.row_ptr);
    for (int64_t row = 0; row < c.rows; row++)
        c.row_ptr[row + 1] = take_near(r, c.row_ptr[row]);
    const int64_t last = c.row_ptr[c.rows];
    c.count = last < 0 ? 0 : last > MAX_BLOCKS ? MAX_BLOCKS : last;
    c.blocks = allocate_array(c.count, sizeof *c.blocks);
    for (int64_t n = 0; n < c.count; n++)
        c.blocks[n] = (int32_t)take_near(r, n > 0 ? c.blocks[n - 1] : 0);
    return c;
}

static void free_csr(csr *c)
{
    free(c->row_ptr);
    free(c->blocks);
}

static csr exported(const problem *p)
{
    csr c = {.rows = count_rows(p)};
    expect(hpa_mask_export_csr(p->plan, p->mask, NULL, NULL, &c.count, &p->exec) == HPA_OK);
    c.row_ptr = allocate_array(c.rows + 1, sizeof *c.row_ptr);
    c.blocks = allocate_array(c.count, sizeof *c.blocks);
    expect(hpa_mask_export_csr(p->plan, p->mask, c.row_ptr, c.blocks, &c.count, &p->exec) ==
           HPA_OK);
    return c;
}

/* Every call runs on an accepted mask. */
static void use_mask(const problem *p)
{
    hpa_mask_stats stats;
    char text[64];
    expect(hpa_mask_statistics(p->plan, p->mask, &stats, &p->exec) == HPA_OK);
    expect(stats.row_min <= stats.row_max && stats.density >= 0 && stats.density <= 1);
    expect(hpa_mask_snprint(p->plan, p->mask, 0, 0, text, sizeof text, &p->exec) >= 0);
    expect(hpa_forward(p->plan, p->mask, &p->in, &p->out, &p->exec) == HPA_OK);
    if (p->desc.training)
        expect(hpa_backward(p->plan, p->mask, &p->in, &p->out, &p->gradients, &p->exec) == HPA_OK);
}

static void try_import(problem *p, reader *r)
{
    csr given = take_csr(p, r);
    const hpa_status status =
        hpa_mask_import_csr(p->plan, &p->in, p->mask, given.row_ptr, given.blocks, &p->exec);
    if (status == HPA_OK) {
        expect(hpa_mask_validate(p->plan, p->mask, &p->exec) == HPA_OK);
        csr again = exported(p);
        expect(again.count == given.count);
        expect(memcmp(again.row_ptr, given.row_ptr, (size_t)(given.rows + 1) * sizeof(int64_t)) ==
               0);
        expect(memcmp(again.blocks, given.blocks, (size_t)given.count * sizeof(int32_t)) == 0);
        free_csr(&again);
        use_mask(p);
    } else {
        expect(status == HPA_INVALID_MASK || status == HPA_INVALID_ARGUMENT);
    }
    free_csr(&given);
}

/* A sound mask, then bytes of it overwritten. Its own lengths may be among them, and then it is
 * another pack's. */
static void try_damage(problem *p, reader *r)
{
    if (hpa_mask_build(p->plan, &p->in, p->mask, &p->exec) != HPA_OK)
        return; /* the lengths of the pack */
    expect(hpa_mask_validate(p->plan, p->mask, &p->exec) == HPA_OK);
    unsigned char *bytes = p->mask;
    while (r->left > 0) {
        size_t at = take_byte(r);
        at = (at << 8 | take_byte(r)) % p->sizes.mask;
        bytes[at] = take_byte(r);
    }
    if (hpa_mask_validate(p->plan, p->mask, &p->exec) != HPA_OK)
        return;
    hpa_mask_stats stats;
    int64_t count = 0;
    expect(hpa_mask_statistics(p->plan, p->mask, &stats, &p->exec) == HPA_OK);
    expect(hpa_mask_export_csr(p->plan, p->mask, NULL, NULL, &count, &p->exec) == HPA_OK);
    expect(count == stats.blocks);
    if (hpa_forward(p->plan, p->mask, &p->in, &p->out, &p->exec) != HPA_OK)
        return; /* another pack's */
    csr sound = exported(p);
    use_mask(p);
    expect(hpa_mask_import_csr(p->plan, &p->in, p->mask, sound.row_ptr, sound.blocks, &p->exec) ==
           HPA_OK);
    free_csr(&sound);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    reader r = {data, size};
    const bool damage = take_byte(&r) & 1;
    problem p;
    if (!new_problem(&p, &r))
        return 0;
    if (damage)
        try_damage(&p, &r);
    else
        try_import(&p, &r);
    free_problem(&p);
    return 0;
}
