/* SPDX-License-Identifier: Apache-2.0 */
#include <kvtier.h>
#include <stdio.h>

enum { N = 2, BYTES = 1 << 20 };
static char kv[N][BYTES], back[N][BYTES]; /* KV of two chunks, and where to have it again */

int main(int argc, char **argv)
{
    unsigned char keys[N][KVTIER_KEY_BYTES] = {{1}, {2}}; /* hashes of the prompt up to here */
    kvtier_options options = {.size = sizeof(options), .socket_path = argv[argc - 1]};
    kvtier_namespace model = {.size = sizeof(model),
                              .model = "my-model",
                              .tokens_per_chunk = 256,
                              .n_layers = 4,
                              .n_kv_heads = 2,
                              .head_dim = 128,
                              .tp_size = 1,
                              .pp_size = 1,
                              .n_segments = 4,
                              .chunk_bytes = BYTES};
    kvtier_layout from[N], to[N];
    for (int i = 0; i < N; i++) {
        from[i] = (kvtier_layout){.base = kv[i], .n_outer = 1, .n_inner = 1, .bytes = BYTES};
        to[i] = (kvtier_layout){.base = back[i], .n_outer = 1, .n_inner = 1, .bytes = BYTES};
    }
    kvtier_completion done;
    kvt_session *session;
    uint64_t op;
    if (kvt_open(&options, &session) != KVTIER_OK || kvt_connect_wait(session, 1000) != KVTIER_OK)
        return 1;
    int ns = kvt_namespace(session, &model);
    if (kvt_store(session, ns, keys, N, from, 0, 0, NULL, NULL, &op) == KVTIER_OK &&
        kvt_wait(session, &done, 1, -1) == 1)
        printf("stored %u of %d chunks\n", done.n_ok, N);
    if (kvt_load(session, ns, keys, N, to, 0, 0, NULL, NULL, &op) == KVTIER_OK &&
        kvt_wait(session, &done, 1, -1) == 1)
        printf("loaded a prefix of %u chunks\n", done.n_prefix);
    kvt_close(session);
    return 0;
}
