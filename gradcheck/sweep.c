/* The cases that hpa-gradcheck runs without a shape on the command line. */
#include "program.h"

struct variation {
    const char *name;
    int64_t batch, heads_q, heads_kv, seq_q, seq_kv, head_dim;
    int32_t block_q, block_k, top_k, sink, window;
    int32_t beam, rep_tokens, leaf_tokens, query_stride, search_span;
    bool not_causal, share_heads;
    double scale;
    const int32_t *lengths_q;
    const int32_t *lengths_kv;
};

static const int32_t with_empty[] = {5, 0, 197, 1, 230};
static const int32_t short_q[] = {1, 2, 17, 0, 40, 33, 20};
static const int32_t short_kv[] = {1, 40, 5, 9, 40, 0, 64};

#define BLOCKS .block_q = 32, .block_k = 16
#define SEARCH .beam = 2, .rep_tokens = 4, .leaf_tokens = 16, .query_stride = 1, .search_span = 1
#define KEPT .top_k = 32, .sink = 16, .window = 16

static const struct variation variations[] = {
    {"causal", 1, 2, 2, 400, 400, 32, BLOCKS, KEPT, SEARCH},
    {"not causal", 1, 2, 2, 257, 257, 32, BLOCKS, KEPT, SEARCH, .not_causal = true},
    {"batch of 3", 3, 2, 1, 197, 197, 16, BLOCKS, KEPT, SEARCH},
    {"grouped heads 4:1", 1, 4, 1, 256, 256, 16, BLOCKS, KEPT, SEARCH},
    {"grouped heads 3:1, shared mask", 1, 6, 2, 257, 257, 16, BLOCKS, KEPT, SEARCH,
     .share_heads = true},
    {"grouped heads 8:1, shared, not causal", 1, 8, 1, 197, 197, 16, BLOCKS, KEPT, SEARCH,
     .not_causal = true, .share_heads = true},
    {"fewer queries than keys", 1, 2, 1, 33, 399, 32, BLOCKS, KEPT, SEARCH},
    {"more queries than keys", 1, 2, 1, 399, 233, 32, BLOCKS, KEPT, SEARCH},
    {"one query", 2, 2, 2, 1, 239, 32, BLOCKS, KEPT, SEARCH},
    {"one key", 1, 2, 1, 239, 1, 32, BLOCKS, KEPT, SEARCH, .not_causal = true},
    {"one token", 1, 2, 1, 1, 1, 16, BLOCKS, KEPT, SEARCH},
    {"packed", 5, 4, 2, 230, 230, 16, BLOCKS, KEPT, SEARCH, .lengths_q = with_empty,
     .lengths_kv = with_empty},
    {"packed, other lengths of keys", 7, 4, 2, 40, 64, 16, BLOCKS, KEPT, SEARCH,
     .lengths_q = short_q, .lengths_kv = short_kv},
    {"packed, not causal, shared mask", 7, 4, 2, 40, 64, 16, .block_q = 16, .block_k = 16,
     .top_k = 16, SEARCH, .not_causal = true, .share_heads = true, .lengths_q = short_q,
     .lengths_kv = short_kv},
    {"sliding window with sinks", 1, 2, 1, 320, 320, 32, BLOCKS, .sink = 16, .window = 40, SEARCH},
    {"sink and window beyond the sequence", 1, 2, 1, 97, 97, 32, BLOCKS, .top_k = 32, .sink = 500,
     .window = 500, SEARCH},
    {"dense: top_k of every key", 1, 2, 2, 129, 129, 32, BLOCKS, .top_k = 129, SEARCH},
    {"search alone", 1, 2, 2, 257, 257, 32, BLOCKS, .top_k = 48, SEARCH, .not_causal = true},
    {"nothing kept", 1, 2, 2, 40, 40, 16, BLOCKS, SEARCH, .not_causal = true},
    {"beam 1, one token a node", 1, 2, 2, 320, 320, 16, .block_q = 16, .block_k = 16, KEPT,
     .beam = 1, .rep_tokens = 1, .leaf_tokens = 1, .query_stride = 4, .search_span = 1},
    {"beam 4, every token of a leaf", 1, 2, 2, 320, 320, 16, .block_q = 16, .block_k = 16, KEPT,
     .beam = 4, .rep_tokens = 8, .leaf_tokens = 16, .query_stride = 1, .search_span = 1},
    {"coarse levels shared by 4 query blocks", 1, 2, 1, 500, 500, 16, .block_q = 16, .block_k = 16,
     .top_k = 16, .sink = 16, .window = 16, .beam = 2, .rep_tokens = 2, .leaf_tokens = 4,
     .query_stride = 1, .search_span = 4},
    {"blocks of 64 x 32", 1, 2, 1, 500, 500, 16, .block_q = 64, .block_k = 32, .top_k = 64,
     .sink = 32, .window = 32, SEARCH},
    {"blocks of 128 x 64", 1, 2, 1, 641, 641, 16, .block_q = 128, .block_k = 64, .top_k = 64,
     .sink = 1, .window = 1, SEARCH},
    {"blocks of 256 x 128", 1, 1, 1, 1000, 1000, 8, .block_q = 256, .block_k = 128, .top_k = 128,
     .window = 1, SEARCH},
    {"head_dim 24, scale 0.5", 1, 2, 1, 257, 257, 24, BLOCKS, KEPT, SEARCH, .scale = 0.5},
    {"head_dim 80", 1, 2, 1, 257, 257, 80, BLOCKS, KEPT, SEARCH},
    {"head_dim 256", 1, 1, 1, 257, 257, 256, BLOCKS, KEPT, SEARCH},
};

#define N_VARIATIONS ((int)(sizeof variations / sizeof *variations))

static int64_t sum_lengths(const int32_t *lengths, int64_t batch)
{
    int64_t sum = 0;
    for (int64_t b = 0; lengths && b < batch; b++)
        sum += lengths[b];
    return sum;
}

static hpa_desc describe(const struct variation *variation, const hpa_desc *common)
{
    hpa_desc desc = hpa_desc_default();
    desc.dtype = common->dtype;
    desc.device = common->device;
    desc.reference = common->reference;
    desc.batch = variation->batch;
    desc.heads_q = variation->heads_q;
    desc.heads_kv = variation->heads_kv;
    desc.seq_q = variation->seq_q;
    desc.seq_kv = variation->seq_kv;
    desc.head_dim = variation->head_dim;
    desc.block_q = variation->block_q;
    desc.block_k = variation->block_k;
    desc.top_k = variation->top_k;
    desc.sink = variation->sink;
    desc.window = variation->window;
    desc.beam = variation->beam;
    desc.rep_tokens = variation->rep_tokens;
    desc.leaf_tokens = variation->leaf_tokens;
    desc.query_stride = variation->query_stride;
    desc.search_span = variation->search_span;
    desc.causal = !variation->not_causal;
    desc.share_heads = variation->share_heads;
    desc.scale = variation->scale;
    desc.packed = variation->lengths_q != NULL;
    desc.total_q = sum_lengths(variation->lengths_q, variation->batch);
    desc.total_kv = sum_lengths(variation->lengths_kv, variation->batch);
    return desc;
}

struct gradcheck_case *sweep_cases(const hpa_desc *desc, int *n)
{
    static struct gradcheck_case cases[N_VARIATIONS];
    for (int i = 0; i < N_VARIATIONS; i++)
        cases[i] = (struct gradcheck_case){.name = variations[i].name,
                                           .desc = describe(&variations[i], desc),
                                           .lengths_q = variations[i].lengths_q,
                                           .lengths_kv = variations[i].lengths_kv};
    *n = N_VARIATIONS;
    return cases;
}
