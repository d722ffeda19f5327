/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs seeds. Each seed draws a configuration, a mix of faults and a schedule, and must replay to
 * the same trace.
 */
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sim.h"

static char replay_line[512]; /* for the handler of an abort: what to say before it ends */

void sim_log_write(struct sim *sim, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    printf("%6llu %12.6f ms  ", (unsigned long long)sim->n_steps, (double)sim->now_ns / 1e6);
    vprintf(format, ap);
    printf("\n");
    va_end(ap);
}

void sim_fail(struct sim *sim, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(sim->failure, sizeof(sim->failure), format, ap);
    va_end(ap);
    longjmp(sim->failed, 1);
}

static void draw_run(struct sim *sim)
{
    static const unsigned weights[SIM_ACT_N] = {
        [SIM_ACT_CLIENT] = 1000, [SIM_ACT_DISK] = 400, [SIM_ACT_META] = 200,  [SIM_ACT_FLUSH] = 200,
        [SIM_ACT_TIME] = 150,    [SIM_ACT_GROW] = 10,  [SIM_ACT_PROBE] = 100, [SIM_ACT_FLIP] = 20,
        [SIM_ACT_KILL] = 2,      [SIM_ACT_ADMIN] = 30,
    };
    sim->now_ns = sim_range(&sim->rng, SIM_MS, 1000000 * SIM_MS);
    sim->n_clients = 1 + sim_below(&sim->rng, SIM_CLIENTS_MAX);
    /* Some runs have sound media, so that what only holds without faults is checked too. */
    bool sound = sim_chance(&sim->rng, 350);
    for (unsigned i = 0; i < SIM_FAULT_N; i++)
        if (sim_chance(&sim->rng, 500) &&
            !(sound && ((SIM_DISK_FAULTS | SIM_META_FAULTS) & (1u << i)) != 0))
            sim->faults |= 1u << i;
    sim->faults &= sim->options.faults;
    sim->fault_permille = 2 + sim_below(&sim->rng, sim_chance(&sim->rng, 200) ? 300 : 40);
    sim->n_writes_before = sim_below(&sim->rng, 60);
    sim->batch_max = 1 + sim_below(&sim->rng, 12);
    for (unsigned i = 0; i < SIM_ACT_N; i++)
        sim->weights[i] = weights[i] * (1 + sim_below(&sim->rng, 12)) / 4;
    if ((sim->faults & SIM_BIT(KILL)) == 0)
        sim->weights[SIM_ACT_KILL] = 0;
    if ((sim->faults & SIM_BIT(FLIP)) == 0)
        sim->weights[SIM_ACT_FLIP] = 0;
}

static enum sim_action draw_action(struct sim *sim)
{
    unsigned total = 0, at = 0;
    for (unsigned i = 0; i < SIM_ACT_N; i++)
        total += sim->weights[i];
    unsigned pick = sim_below(&sim->rng, total);
    while (pick >= sim->weights[at])
        pick -= sim->weights[at++];
    return (enum sim_action)at;
}

static void pass_time(struct sim *sim)
{
    uint64_t next = kvt_core_next_deadline(sim->core);
    switch (sim_below(&sim->rng, 6)) {
    case 0:
        sim_node_advance(sim, sim_range(&sim->rng, 0, 10 * SIM_MS));
        break;
    case 1: /* exactly to what is due next */
        if (next != UINT64_MAX && next > sim->now_ns && next - sim->now_ns < 1000 * SIM_MS)
            sim_node_advance(sim, next - sim->now_ns);
        break;
    default:
        sim_node_advance(sim, sim_range(&sim->rng, 0, SIM_MS / 5));
        break;
    }
}

/* Everybody ends what he has open; then nothing may be left of it. */
static void rest(struct sim *sim, bool drain)
{
    sim_log(sim, "--- everybody ends%s", drain ? ", the core drains" : "");
    if (drain) {
        kvt_core_drain(sim->core);
        sim->drained = true;
    }
    for (unsigned c = 0; c < sim->n_clients; c++)
        sim_client_finish(sim, &sim->clients[c]);
    sim_admin_finish(sim);
    sim_node_settle(sim);
    sim_model_quiet(sim);
}

static void step(struct sim *sim)
{
    struct sim_client *client = &sim->clients[sim_below(&sim->rng, sim->n_clients)];
    switch (draw_action(sim)) {
    case SIM_ACT_CLIENT:
        sim_client_step(sim, client);
        break;
    case SIM_ACT_DISK:
        (void)sim_disk_step(sim, false);
        break;
    case SIM_ACT_META:
        (void)sim_meta_step(sim);
        break;
    case SIM_ACT_FLUSH:
        sim_node_flush(sim);
        break;
    case SIM_ACT_TIME:
        sim_node_flush(sim);
        pass_time(sim);
        break;
    case SIM_ACT_GROW:
        sim_node_grow(sim);
        break;
    case SIM_ACT_PROBE:
        sim_node_flush(sim);
        sim_model_probe(sim);
        break;
    case SIM_ACT_FLIP:
        if (sim->disk.n_bytes > 0)
            sim_disk_flip(sim);
        break;
    case SIM_ACT_KILL:
        sim_node_kill(sim);
        break;
    case SIM_ACT_ADMIN:
        sim_admin_step(sim);
        break;
    case SIM_ACT_N:
        break;
    }
}

static void run(struct sim *sim)
{
    draw_run(sim);
    sim_model_init(sim);
    sim_node_init(sim);
    sim_log(sim,
            "%u keys in %u namespaces, %u clients; host %u slabs of %llu, nvme %u of %llu, "
            "%u chunks, %u transfers, policies %s and %s, admission %d%s; faults %x",
            sim->n_keys, sim->n_ns, sim->n_clients, sim->config.n_host_slabs,
            (unsigned long long)sim->config.host_slab_bytes, sim->config.n_nvme_slabs,
            (unsigned long long)sim->config.nvme_slab_bytes, sim->config.n_chunks_max,
            sim->config.n_ios_max, sim->config.host_policy->name, sim->config.nvme_policy->name,
            sim->config.admission, sim->roomy ? ", roomy" : "", sim->faults);
    uint64_t rest_at = sim_range(&sim->rng, 1, sim->options.n_steps);
    unsigned until_flush = 1;
    for (sim->n_steps = 0; sim->n_steps < sim->options.n_steps; sim->n_steps++) {
        step(sim);
        if (--until_flush == 0) {
            sim_node_flush(sim);
            until_flush = 1 + sim_below(&sim->rng, sim->batch_max);
        }
        if (sim->n_steps == rest_at)
            rest(sim, false);
    }
    rest(sim, sim_chance(&sim->rng, 500));
    if ((sim->faults & SIM_BIT(KILL)) != 0) {
        sim_node_kill(sim);
        rest(sim, false);
    }
}

static bool run_seed(uint64_t seed, const struct sim_options *options, uint64_t *trace_p)
{
    struct sim *sim = calloc(1, sizeof(*sim));
    KVT_ASSERT(sim != NULL);
    sim->seed = seed;
    sim->options = *options;
    sim->rng.state = sim_mix(seed);
    bool ok = setjmp(sim->failed) == 0;
    if (ok)
        run(sim);
    else
        printf("FAILED at step %llu, %.6f ms: %s\n", (unsigned long long)sim->n_steps,
               (double)sim->now_ns / 1e6, sim->failure);
    *trace_p = sim->trace;
    sim_node_fini(sim);
    free(sim);
    return ok;
}

static void on_abort(int signal)
{
    /* The seed must be known however a run ends. */
    ssize_t n = write(STDOUT_FILENO, replay_line, strlen(replay_line));
    (void)n;
    _exit(128 + signal);
}

static bool parse_faults(const char *text, uint32_t *faults_p)
{
    static const char *const names[] = {
#define SIM_FAULT_NAME(upper, lower) lower,
        SIM_FAULT_MAP(SIM_FAULT_NAME)
#undef SIM_FAULT_NAME
    };
    uint32_t faults = 0;
    if (strcmp(text, "all") == 0 || strcmp(text, "none") == 0) {
        *faults_p = strcmp(text, "all") == 0 ? UINT32_MAX : 0;
        return true;
    }
    while (*text != '\0') {
        size_t n = strcspn(text, ",");
        unsigned i = 0;
        while (i < SIM_FAULT_N && (strlen(names[i]) != n || strncmp(names[i], text, n) != 0))
            i++;
        if (i == SIM_FAULT_N)
            return false;
        faults |= 1u << i;
        text += n + (text[n] == ',');
    }
    *faults_p = faults;
    return true;
}

static void usage(FILE *out)
{
    fprintf(out, "usage: sim [--seed N] [--runs N] [--seconds S] [--steps N]\n"
                 "           [--faults none|all|LIST] [-v]\n"
                 "  --seed N     the first seed; the default is made from the time\n"
                 "  --runs N     seeds to run, one after the other; 0: until --seconds are over\n"
                 "  --seconds S  start no run after that; a list with KVT_SIM_SECONDS, if set\n"
                 "  --steps N    of a run (default 3000)\n"
                 "  --faults     faults that runs may draw: ");
#define SIM_FAULT_PRINT(upper, lower) fprintf(out, " %s", lower);
    SIM_FAULT_MAP(SIM_FAULT_PRINT)
#undef SIM_FAULT_PRINT
    fprintf(out, "\n  -v           print what happens\n"
                 "exit status: 0 all runs passed, 1 a run failed, 2 usage\n");
}

int main(int argc, char **argv)
{
    static const struct option longs[] = {
        {"seed", required_argument, NULL, 's'},    {"runs", required_argument, NULL, 'r'},
        {"seconds", required_argument, NULL, 't'}, {"steps", required_argument, NULL, 'n'},
        {"faults", required_argument, NULL, 'f'},  {"verbose", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    struct sim_options options = {.n_steps = 3000, .faults = UINT32_MAX};
    const char *faults = "all";
    uint64_t seed = sim_mix(kvt_now_ns()) % 1000000000, n_runs = UINT64_MAX, n_failed = 0;
    double seconds = 0;
    int option;
    while ((option = getopt_long(argc, argv, "vh", longs, NULL)) != -1) {
        if (option == 's')
            seed = strtoull(optarg, NULL, 0);
        else if (option == 'r')
            n_runs = strtoull(optarg, NULL, 0);
        else if (option == 't')
            seconds = strtod(optarg, NULL);
        else if (option == 'n')
            options.n_steps = strtoull(optarg, NULL, 0);
        else if (option == 'f')
            faults = optarg;
        else if (option == 'v')
            options.verbose = true;
        else {
            usage(option == 'h' ? stdout : stderr);
            return option == 'h' ? 0 : 2;
        }
    }
    if (!parse_faults(faults, &options.faults) || options.n_steps == 0) {
        usage(stderr);
        return 2;
    }
    const char *longer = getenv("KVT_SIM_SECONDS");
    if (seconds > 0 && longer != NULL && strtod(longer, NULL) > 0)
        seconds = strtod(longer, NULL);
    if (n_runs == UINT64_MAX)
        n_runs = seconds > 0 ? 0 : 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGABRT, on_abort);
    signal(SIGSEGV, on_abort);
    signal(SIGBUS, on_abort);
    uint64_t start_ns = kvt_now_ns(), n = 0;
    printf("seeds from %llu\n", (unsigned long long)seed);
    for (; n_runs == 0 || n < n_runs; n++, seed++) {
        if (seconds > 0 && (double)(kvt_now_ns() - start_ns) > seconds * 1e9)
            break;
        uint64_t trace = 0, again = 0;
        snprintf(replay_line, sizeof(replay_line),
                 "seed %llu; replay: %s --seed %llu --steps %llu "
                 "--faults %s -v\n",
                 (unsigned long long)seed, argv[0], (unsigned long long)seed,
                 (unsigned long long)options.n_steps, faults);
        bool ok = run_seed(seed, &options, &trace);
        /* Now and then twice: what depends on anything but the seed cannot be replayed. */
        if (ok && n % 16 == 0 && !options.verbose) {
            ok = run_seed(seed, &options, &again) && again == trace;
            if (!ok)
                printf("FAILED: the same seed took another course\n");
        }
        if (!ok) {
            n_failed++;
            printf("%s", replay_line);
        }
    }
    printf("%llu runs, %llu failed, last seed %llu\n", (unsigned long long)n,
           (unsigned long long)n_failed, (unsigned long long)(seed - 1));
    return n_failed > 0;
}
