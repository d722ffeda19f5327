/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kvt/util.h"

#define TOKENS_PER_BLOCK 512
#define PROMPT_MAX       512 /* blocks */

struct random {
    uint64_t state;
};

static uint64_t random_next(struct random *random) /* splitmix64 */
{
    uint64_t x = random->state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint32_t random_below(struct random *random, uint32_t n)
{
    return (uint32_t)(((random_next(random) >> 32) * n) >> 32);
}

static double random_unit(struct random *random) /* (0, 1] */
{
    return ((double)(random_next(random) >> 11) + 1.0) * 0x1p-53;
}

static double random_exponential(struct random *random, double mean)
{
    return -mean * log(random_unit(random));
}

/* Rank below n with probability about 1 / rank: a few documents are asked for again and again. */
static uint32_t random_zipf(struct random *random, uint32_t n)
{
    uint32_t rank = (uint32_t)exp(random_unit(random) * log((double)n + 1.0));
    return KVT_MIN(rank, n) - 1;
}

/* The id of a block stands for it and all before it, as in a prefix chain. */
struct prompt {
    uint64_t ids[PROMPT_MAX];
    uint32_t n;
};

static void prompt_add(struct prompt *prompt, uint64_t content)
{
    if (prompt->n == PROMPT_MAX)
        return;
    struct random chain = {.state = content};
    uint64_t before = prompt->n > 0 ? prompt->ids[prompt->n - 1] : 1;
    chain.state = random_next(&chain) ^ before;
    prompt->ids[prompt->n++] = random_next(&chain) >> 1; /* as a file could hold it: signed */
}

static enum kvt_status prompt_send(struct kvt_trace *trace, const struct prompt *prompt, double ms,
                                   struct kvt_error *err)
{
    return kvt_trace_add(trace, (uint64_t)ms, prompt->n * TOKENS_PER_BLOCK, TOKENS_PER_BLOCK / 2,
                         prompt->ids, prompt->n, err);
}

/* --- conversations: each turn repeats all before it and adds a question and an answer --------- */

#define TALKS_MAX 256

struct talk {
    struct prompt prompt;
    double due_ms;
    uint32_t n_turns;
};

static void talk_begin(struct talk *talk, struct random *random, double now_ms)
{
    talk->prompt.n = 0;
    talk->n_turns = 0;
    uint32_t persona = random_zipf(random, 16); /* system prompts that many share */
    for (uint32_t i = 0; i < 2; i++)
        prompt_add(&talk->prompt, 1000 + persona);
    uint32_t n_first = 1 + (uint32_t)random_exponential(random, 6.0);
    for (uint32_t i = 0; i < KVT_MIN(n_first, PROMPT_MAX / 4u); i++)
        prompt_add(&talk->prompt, random_next(random));
    talk->due_ms = now_ms + random_exponential(random, 60e3);
}

static enum kvt_status make_multiturn(struct kvt_trace *trace, size_t n_requests, uint64_t seed,
                                      struct kvt_error *err)
{
    struct random random = {.state = seed};
    struct talk *talks = calloc(TALKS_MAX, sizeof(*talks));
    if (talks == NULL)
        return kvt_error_set(err, KVT_ERR_NOMEM, "multiturn: out of memory");
    for (unsigned i = 0; i < TALKS_MAX; i++)
        talk_begin(&talks[i], &random, 0);
    enum kvt_status status = KVT_OK;
    for (size_t r = 0; r < n_requests && status == KVT_OK; r++) {
        struct talk *talk = &talks[0];
        for (unsigned i = 1; i < TALKS_MAX; i++)
            if (talks[i].due_ms < talk->due_ms)
                talk = &talks[i];
        double now_ms = talk->due_ms;
        status = prompt_send(trace, &talk->prompt, now_ms, err);
        talk->n_turns++;
        /* The longer it went on, the likelier it goes on. */
        double goes_on = 1.0 - 0.75 / (1.0 + 0.5 * talk->n_turns);
        if (talk->prompt.n + 4 > PROMPT_MAX || random_unit(&random) > goes_on) {
            talk_begin(talk, &random, now_ms);
            continue;
        }
        uint32_t n_more = 1 + random_below(&random, 3);
        for (uint32_t i = 0; i < n_more; i++)
            prompt_add(&talk->prompt, random_next(&random));
        talk->due_ms = now_ms + 20e3 + random_exponential(&random, 90e3);
    }
    free(talks);
    return status;
}

/* --- retrieval: a shared instruction, a few documents by popularity, a question --------------- */

static enum kvt_status make_rag(struct kvt_trace *trace, size_t n_requests, uint64_t seed,
                                struct kvt_error *err)
{
    struct random random = {.state = seed};
    enum kvt_status status = KVT_OK;
    double now_ms = 0;
    for (size_t r = 0; r < n_requests && status == KVT_OK; r++) {
        struct prompt prompt = {.n = 0};
        prompt_add(&prompt, 1);
        uint32_t n_documents = 1 + random_below(&random, 4);
        for (uint32_t d = 0; d < n_documents; d++) {
            uint64_t document = random_zipf(&random, 2000);
            uint32_t n_blocks = 2 + (uint32_t)(document % 4);
            for (uint32_t i = 0; i < n_blocks; i++)
                prompt_add(&prompt, 10000 + document * 16 + i);
        }
        prompt_add(&prompt, random_next(&random));
        now_ms += random_exponential(&random, 150.0);
        status = prompt_send(trace, &prompt, now_ms, err);
    }
    return status;
}

/* --- long documents: several questions about the same one, some time apart -------------------- */

#define DOCUMENTS_OPEN 32

static enum kvt_status make_longdoc(struct kvt_trace *trace, size_t n_requests, uint64_t seed,
                                    struct kvt_error *err)
{
    struct random random = {.state = seed};
    struct {
        uint64_t id;
        uint32_t n_blocks, n_questions;
    } open[DOCUMENTS_OPEN];
    memset(open, 0, sizeof(open));
    enum kvt_status status = KVT_OK;
    double now_ms = 0;
    for (size_t r = 0; r < n_requests && status == KVT_OK; r++) {
        uint32_t at = random_below(&random, DOCUMENTS_OPEN);
        if (open[at].n_questions == 0) {
            open[at].id = random_next(&random);
            open[at].n_blocks = 64 + random_below(&random, 192);
            open[at].n_questions = 1 + random_below(&random, 8);
        }
        struct prompt prompt = {.n = 0};
        for (uint32_t i = 0; i < open[at].n_blocks; i++)
            prompt_add(&prompt, open[at].id + i);
        prompt_add(&prompt, random_next(&random));
        open[at].n_questions--;
        now_ms += random_exponential(&random, 1000.0);
        status = prompt_send(trace, &prompt, now_ms, err);
    }
    return status;
}

const struct kvt_workload kvt_workloads[] = {
    {"multiturn", "conversations that go on, 256 at a time", make_multiturn},
    {"rag", "popular documents in changing combinations", make_rag},
    {"longdoc", "several questions about each of many long documents", make_longdoc},
    {NULL, NULL, NULL},
};

const struct kvt_workload *kvt_workload_find(const char *name)
{
    for (const struct kvt_workload *w = kvt_workloads; w->name != NULL; w++)
        if (strcmp(w->name, name) == 0)
            return w;
    return NULL;
}
