#include "search.h"

typedef struct node {
    int64_t begin, end;               /* candidates */
    int64_t parent_begin, parent_end; /* of the node that it was split from */
    double score;
} node;

int64_t test_tree_blocks(const hpa_desc *desc)
{
    return (desc->top_k + (int64_t)desc->block_k - 1) / desc->block_k;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The sets, token by token */

static bool query_sees(const test_problem *p, int64_t batch, int64_t query, int64_t key)
{
    return !p->desc.causal || key <= query + test_kv_length(p, batch) - test_q_length(p, batch);
}

static bool in_window(const test_problem *p, const test_row *row, int64_t key)
{
    const int64_t shift = test_kv_length(p, row->batch) - test_q_length(p, row->batch);
    const int64_t window = p->desc.causal && p->desc.window < 1 ? 1 : p->desc.window;
    if (window == 0)
        return false;
    return row->first + shift - window < key &&
           (p->desc.causal || key < row->last + shift + window);
}

static void classify_block(const test_problem *p, test_row *row, int64_t block)
{
    const int64_t begin = block * p->desc.block_k;
    const int64_t end = smaller(begin + p->desc.block_k, test_kv_length(p, row->batch));
    for (int64_t key = begin; key < end; key++) {
        row->sink[block] |= key < p->desc.sink;
        row->window[block] |= in_window(p, row, key);
        for (int64_t query = row->first; query <= row->last; query++)
            row->visible[block] |= query_sees(p, row->batch, query, key);
    }
    row->sink[block] &= row->visible[block];
    row->window[block] &= row->visible[block];
}

test_row test_row_at(const test_problem *p, int64_t r)
{
    test_row row = {0};
    for (;; row.batch++) {
        const int64_t query_blocks =
            (test_q_length(p, row.batch) + p->desc.block_q - 1) / p->desc.block_q;
        if (r < test_mask_heads(p) * query_blocks) {
            row.mask_head = r / query_blocks;
            row.query_block = r % query_blocks;
            break;
        }
        r -= test_mask_heads(p) * query_blocks;
    }
    row.first = row.query_block * p->desc.block_q;
    row.last = smaller(row.first + p->desc.block_q, test_q_length(p, row.batch)) - 1;
    row.key_blocks = (test_kv_length(p, row.batch) + p->desc.block_k - 1) / p->desc.block_k;
    row.visible = calloc((size_t)row.key_blocks + 1, sizeof *row.visible);
    row.sink = calloc((size_t)row.key_blocks + 1, sizeof *row.sink);
    row.window = calloc((size_t)row.key_blocks + 1, sizeof *row.window);
    row.candidates = test_allocate(row.key_blocks, sizeof *row.candidates);
    for (int64_t block = 0; block < row.key_blocks; block++) {
        classify_block(p, &row, block);
        if (row.visible[block] && !row.sink[block] && !row.window[block])
            row.candidates[row.candidate_count++] = block;
    }
    return row;
}

void test_row_free(test_row *row)
{
    free(row->visible);
    free(row->sink);
    free(row->window);
    free(row->candidates);
}

/* Scores */

double test_token_score(const test_problem *p, const test_row *row, const double *q,
                        const double *k, int64_t token)
{
    const int64_t D = p->desc.head_dim, group = p->desc.heads_q / p->desc.heads_kv;
    const int64_t heads = p->desc.share_heads ? group : 1; /* query heads of the row */
    double best = -(double)INFINITY;
    for (int64_t h = row->mask_head * heads; h < (row->mask_head + 1) * heads; h++) {
        const double *key = k + D * test_kv_row(p, row->batch, h / group, token);
        for (int64_t i = row->first; i <= row->last; i += p->desc.query_stride) {
            const double *query = q + D * test_q_row(p, row->batch, h, i);
            double dot = 0;
            for (int64_t d = 0; d < D; d++)
                dot += query[d] * key[d];
            if (dot > best) /* a NaN is not */
                best = dot;
        }
    }
    return best;
}

/* The token of representative n of r of a node. */
static int64_t representative(const test_problem *p, const test_row *row, const node *child,
                              int64_t n, int64_t r)
{
    const int64_t block_k = p->desc.block_k;
    const int64_t length = (child->end - child->begin) * block_k;
    const int64_t place = (2 * n + 1) * length / (2 * r);
    const int64_t token =
        row->candidates[child->begin + place / block_k] * block_k + place % block_k;
    return smaller(token, test_kv_length(p, row->batch) - 1);
}

static int64_t representatives(const test_problem *p, const node *child, bool last_level)
{
    return smaller(last_level ? p->desc.leaf_tokens : p->desc.rep_tokens,
                   (child->end - child->begin) * p->desc.block_k);
}

/* Own representatives, and those of the parent that lie in the child. */
static double node_score(const test_problem *p, const test_row *row, const double *token_scores,
                         const node *child, bool first_level, bool last_level)
{
    const int64_t r = representatives(p, child, last_level);
    double best = -(double)INFINITY;
    for (int64_t n = 0; n < r; n++)
        best = fmax(best, token_scores[representative(p, row, child, n, r)]);
    if (first_level)
        return best;
    const node parent = {.begin = child->parent_begin, .end = child->parent_end};
    const int64_t of_parent = representatives(p, &parent, false);
    for (int64_t n = 0; n < of_parent; n++) {
        const int64_t place = (2 * n + 1) * (parent.end - parent.begin) * p->desc.block_k;
        const int64_t candidate = parent.begin + place / (2 * of_parent) / p->desc.block_k;
        if (candidate >= child->begin && candidate < child->end)
            best = fmax(best, token_scores[representative(p, row, &parent, n, of_parent)]);
    }
    return best;
}

/* Search */

static int64_t level_count(int64_t candidates, int64_t width)
{
    const int64_t widest = (candidates + width - 1) / width;
    int64_t levels = 0;
    while ((INT64_C(1) << levels) < widest)
        levels++;
    return levels > 1 ? levels : 1;
}

static int64_t split(const node *nodes, int64_t count, node *children)
{
    int64_t n_children = 0;
    for (int64_t n = 0; n < count; n++) {
        const int64_t begin = nodes[n].begin, end = nodes[n].end;
        const int64_t middle = begin + (end - begin + 1) / 2;
        children[n_children++] = (node){begin, middle, begin, end, 0};
        if (middle < end)
            children[n_children++] = (node){middle, end, begin, end, 0};
    }
    return n_children;
}

/* Higher first; of equals, the lower candidate first. */
static int by_score(const void *left, const void *right)
{
    const node *a = left, *b = right;
    if (a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

static int64_t first_nodes(int64_t candidates, int64_t width, node *nodes)
{
    const int64_t count = smaller(candidates, width);
    for (int64_t g = 0; g < count; g++)
        nodes[g] = (node){.begin = g * candidates / count, .end = (g + 1) * candidates / count};
    return count;
}

/* As many levels, each of which keeps the best W but for the last; in nodes, of which count are given
 * and the number kept is returned. to_blocks: the last level is that of single candidates. */
static int64_t run_levels(const test_problem *p, const test_row *row, const double *token_scores,
                          int64_t levels, bool to_blocks, int64_t keep, node *nodes, int64_t count)
{
    const int64_t W = p->desc.beam * test_tree_blocks(&p->desc);
    node *children = test_allocate(2 * smaller(W, row->candidate_count), sizeof *children);
    for (int64_t level = 1; level <= levels; level++) {
        const int64_t n_children = split(nodes, count, children);
        for (int64_t n = 0; n < n_children; n++)
            children[n].score = node_score(p, row, token_scores, &children[n], level == 1,
                                           to_blocks && level == levels);
        qsort(children, (size_t)n_children, sizeof *children, by_score);
        count = smaller(n_children, level == levels ? keep : W);
        memcpy(nodes, children, (size_t)count * sizeof *nodes);
    }
    free(children);
    return count;
}

static double *score_tokens(const test_problem *p, const test_row *row, const double *q,
                            const double *k)
{
    const int64_t keys = test_kv_length(p, row->batch);
    double *token_scores = test_allocate(keys, sizeof *token_scores);
    for (int64_t token = 0; token < keys; token++)
        token_scores[token] = test_token_score(p, row, q, k, token);
    return token_scores;
}

/* Levels that every row does itself, and the candidates that they tell apart: 2^3. */
enum { OWN_LEVELS = 3, NODE_CANDIDATES = 8 };

/* How many nodes the candidates take that the last row of a span has and its first does not. */
static int64_t tail_nodes(const hpa_desc *desc)
{
    const int64_t queries = (int64_t)(desc->search_span - 1) * desc->block_q;
    const int64_t blocks = (queries + desc->block_k - 1) / desc->block_k;
    return (blocks + NODE_CANDIDATES - 1) / NODE_CANDIDATES;
}

int64_t test_shared_levels(const test_problem *p, int64_t r)
{
    const int64_t W = p->desc.beam * test_tree_blocks(&p->desc);
    const int64_t tail = tail_nodes(&p->desc);
    if (!p->desc.causal || p->desc.search_span == 1 || W == 0 || 2 * tail > W)
        return 0;
    test_row row = test_row_at(p, r);
    test_row first = test_row_at(p, r - row.query_block % p->desc.search_span);
    const int64_t levels = level_count(first.candidate_count, W);
    test_row_free(&row);
    test_row_free(&first);
    return levels > OWN_LEVELS ? levels - OWN_LEVELS : 0;
}

/* What the first row of row r's span hands on to it: the nodes that it keeps after the levels that it
 * does for all, and then, in nodes of its own, what only row r sees. */
static int64_t span_nodes(const test_problem *p, int64_t r, const test_row *row, const double *q,
                          const double *k, node *nodes)
{
    const int64_t W = p->desc.beam * test_tree_blocks(&p->desc);
    test_row first = test_row_at(p, r - row->query_block % p->desc.search_span);
    double *token_scores = score_tokens(p, &first, q, k);
    int64_t count = first_nodes(first.candidate_count, W, nodes);
    count = run_levels(p, &first, token_scores, test_shared_levels(p, r), false,
                       W - tail_nodes(&p->desc), nodes, count);
    for (int64_t c = first.candidate_count; c < row->candidate_count; c += NODE_CANDIDATES)
        nodes[count++] =
            (node){.begin = c, .end = smaller(c + NODE_CANDIDATES, row->candidate_count)};
    ck_assert_int_le(count, W);
    free(token_scores);
    test_row_free(&first);
    return count;
}

/* Marks the candidates that the search of row r keeps. */
static void search(const test_problem *p, int64_t r, const test_row *row, const double *q,
                   const double *k, bool *kept)
{
    const int64_t M = test_tree_blocks(&p->desc), W = p->desc.beam * M;
    const bool shares = test_shared_levels(p, r) > 0;
    const int64_t levels = shares ? OWN_LEVELS : level_count(row->candidate_count, W);
    node *nodes = test_allocate(smaller(W, row->candidate_count), sizeof *nodes);
    int64_t count =
        shares ? span_nodes(p, r, row, q, k, nodes) : first_nodes(row->candidate_count, W, nodes);
    double *token_scores = score_tokens(p, row, q, k);
    count = run_levels(p, row, token_scores, levels, true, M, nodes, count);
    for (int64_t n = 0; n < count; n++) {
        ck_assert_int_eq(nodes[n].end - nodes[n].begin, 1);
        kept[row->candidates[nodes[n].begin]] = true;
    }
    free(token_scores);
    free(nodes);
}

static void keep_tree(const test_problem *p, int64_t r, const test_row *row, const double *q,
                      const double *k, bool *kept)
{
    const int64_t M = test_tree_blocks(&p->desc);
    if (row->candidate_count > M) {
        if (M > 0)
            search(p, r, row, q, k, kept);
        return;
    }
    for (int64_t n = 0; n < row->candidate_count; n++)
        kept[row->candidates[n]] = true;
}

test_csr test_expected_mask(const test_problem *p, const double *q, const double *k)
{
    const int64_t heads = test_mask_heads(p);
    test_csr csr = {0};
    int64_t capacity = 0;
    for (int64_t b = 0; b < p->desc.batch; b++) {
        const int64_t rows =
            heads * ((test_q_length(p, b) + p->desc.block_q - 1) / p->desc.block_q);
        csr.rows += rows;
        capacity += rows * ((test_kv_length(p, b) + p->desc.block_k - 1) / p->desc.block_k);
    }
    csr.row_ptr = test_allocate(csr.rows + 1, sizeof *csr.row_ptr);
    csr.blocks = test_allocate(capacity, sizeof *csr.blocks);
    csr.row_ptr[0] = 0;
    for (int64_t r = 0; r < csr.rows; r++) {
        test_row row = test_row_at(p, r);
        bool *kept = calloc((size_t)row.key_blocks + 1, sizeof *kept);
        keep_tree(p, r, &row, q, k, kept);
        int64_t end = csr.row_ptr[r];
        for (int64_t block = 0; block < row.key_blocks; block++)
            if (kept[block] || row.sink[block] || row.window[block])
                csr.blocks[end++] = (int32_t)block;
        csr.row_ptr[r + 1] = end;
        free(kept);
        test_row_free(&row);
    }
    return csr;
}

bool test_always_representative(const test_problem *p, const test_row *row, int64_t token)
{
    const int64_t M = test_tree_blocks(&p->desc), W = p->desc.beam * M;
    int64_t wanted = 0;
    while (wanted < row->candidate_count && row->candidates[wanted] != token / p->desc.block_k)
        wanted++;
    if (wanted == row->candidate_count || row->candidate_count <= M || M == 0)
        return false;
    node *nodes = test_allocate(row->candidate_count, sizeof *nodes);
    const int64_t count = first_nodes(row->candidate_count, W, nodes);
    node on_way = nodes[0];
    for (int64_t n = 0; n < count; n++)
        if (nodes[n].begin <= wanted)
            on_way = nodes[n];
    free(nodes);
    const int64_t levels = level_count(row->candidate_count, W);
    bool always = true;
    for (int64_t level = 1; level <= levels; level++) {
        node children[2];
        const int64_t n_children = split(&on_way, 1, children);
        on_way = children[n_children == 2 && children[1].begin <= wanted];
        const int64_t r = representatives(p, &on_way, level == levels);
        bool found = false;
        for (int64_t n = 0; n < r; n++)
            found |= representative(p, row, &on_way, n, r) == token;
        always &= found;
    }
    return always;
}

void test_import_random_mask(test_problem *p, test_random *random, int64_t of_four, int64_t spared)
{
    const int64_t key_blocks = (p->desc.seq_kv + p->desc.block_k - 1) / p->desc.block_k;
    test_csr csr = test_export(p);
    free(csr.blocks);
    csr.blocks = test_allocate(csr.rows * key_blocks, sizeof *csr.blocks);
    for (int64_t r = 0; r < csr.rows; r++) {
        test_row row = test_row_at(p, r);
        int64_t end = csr.row_ptr[r];
        for (int64_t block = 0; block < row.key_blocks; block++)
            if (row.visible[block] && r % 5 != 2 && block != spared &&
                test_random_integer(random, 0, 3) < of_four)
                csr.blocks[end++] = (int32_t)block;
        csr.row_ptr[r + 1] = end;
        test_row_free(&row);
    }
    test_import(p, &csr);
    test_csr_free(&csr);
}
