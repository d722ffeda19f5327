/* SPDX-License-Identifier: Apache-2.0 */
/* The expected keys were computed in Python: hashlib, and cbor2 in its canonical form. */
#include "kvt/key_chain.h"
#include "kvt/util.h"

#include <check.h>
#include <stdio.h>
#include <string.h>

#define LONG_CHUNK 1500 /* more than is hashed at once */

/* At the borders of each length that CBOR knows. */
static const uint32_t edges[] = {0, 23, 24, 255, 256, 65535, 65536, UINT32_MAX};

static const char *hex(const struct kvt_key *key)
{
    static char text[2 * KVT_KEY_BYTES + 1];
    for (unsigned i = 0; i < KVT_KEY_BYTES; i++)
        snprintf(text + 2 * (size_t)i, 3, "%02x", key->bytes[i]);
    return text;
}

static const struct vectors {
    const char *algo;
    const char *edges[2];  /* chunks of 4 */
    const char *long_[2];  /* LONG_CHUNK tokens: i * 2654435761 modulo 2^32 */
    const char *parent[1]; /* edges as one chunk behind 00 01 02 ... 1f */
    const char *one[1];    /* a chunk of one token, 7 */
} vectors[] = {
    {"kvtier_sha256",
     {"97047163894c7166ff00c6e5d1778a1e2f562c18b9d6afdfbb37786d7f2fc21a",
      "7ff813d9ccdcd4f70782477b06ff26dc7ac602fcec2208509dc4d9fa948d31c7"},
     {"fe5dbff735f5432032de5190a07121fe01dd43edd59585b45c2d32aed57668dc",
      "85f3f31fc6a0e71f66acccad570f44aa71c6241cdf3f9270cacd8e2ecdd2f788"},
     {"664d97173a4f9a0c254f23f4df70663e266a49368768f87df1438c258d38303c"},
     {"95f1f8ffe5b54fd46e622b34b93464acfc25fd54cabd50a3f0143479e4253b42"}},
    {"sha256_cbor",
     {"dc7fbfd287fac7b6243222eb8a406c3a145df86542e11806ae74c52db0f7a8e2",
      "1574b893f40f230a5e277f8b86c4ed770e35331efd2a8a6e2e01c476a1e11e0a"},
     {"bacab122176655f2105edd4bbf36473ed5555e87fe1a74dc65dc57c5d41a37ef",
      "bf8aa74af68e7cb99643e127e794bdb56d2cd7b910b6a1648ea7d9f2417edd1f"},
     {"172b1239be13ebca84c860e3e0909003c30479b6ac47198534d93d3aa4c73e92"},
     {"13d3f705f79b720edaa9d07ce3cc48ffacb47dc6434ebe1d59e7ebfe51d282d6"}},
};

static void expect(const char *algo, const struct kvt_key *parent, const uint32_t *tokens,
                   uint32_t per_chunk, size_t n, const char *const *wanted)
{
    struct kvt_key keys[2];
    ck_assert_int_eq(kvt_key_chain(algo, parent, tokens, per_chunk, n, keys), KVT_OK);
    for (size_t i = 0; i < n; i++)
        ck_assert_str_eq(hex(&keys[i]), wanted[i]);
}

START_TEST(golden)
{
    const struct vectors *v = &vectors[_i];
    static uint32_t tokens[2 * LONG_CHUNK];
    struct kvt_key parent;
    for (uint32_t i = 0; i < KVT_ARRAY_LEN(tokens); i++)
        tokens[i] = i * UINT32_C(2654435761);
    for (unsigned i = 0; i < KVT_KEY_BYTES; i++)
        parent.bytes[i] = (uint8_t)i;
    expect(v->algo, NULL, edges, 4, 2, v->edges);
    expect(v->algo, NULL, tokens, LONG_CHUNK, 2, v->long_);
    expect(v->algo, &parent, edges, 8, 1, v->parent);
    expect(v->algo, NULL, (const uint32_t[]){7}, 1, 1, v->one);
}
END_TEST

START_TEST(a_chain_goes_on_behind_its_parent)
{
    const struct vectors *v = &vectors[_i];
    struct kvt_key keys[8];
    ck_assert_int_eq(kvt_key_chain(v->algo, NULL, edges, 2, 4, keys), KVT_OK);
    ck_assert_int_eq(kvt_key_chain(v->algo, &keys[1], edges + 4, 2, 2, keys + 4), KVT_OK);
    ck_assert_mem_eq(&keys[4], &keys[2], 2 * sizeof(*keys));
}
END_TEST

START_TEST(refusals)
{
    struct kvt_key keys[2] = {{{0}}};
    const struct kvt_key none[2] = {{{0}}};
    ck_assert_int_eq(kvt_key_chain("", NULL, edges, 4, 2, keys), KVT_ERR_NOTSUP);
    ck_assert_int_eq(kvt_key_chain("sha256", NULL, edges, 4, 2, keys), KVT_ERR_NOTSUP);
    ck_assert_int_eq(kvt_key_chain("kvtier_sha256", NULL, edges, 0, 2, keys), KVT_ERR_INVAL);
    ck_assert_int_eq(kvt_key_chain("kvtier_sha256", NULL, edges, 9, 0, keys), KVT_OK);
    ck_assert_mem_eq(keys, none, sizeof(keys));
    unsigned n = 0;
    while (kvt_key_algos[n] != NULL)
        n++;
    ck_assert_uint_eq(n, KVT_ARRAY_LEN(vectors)); /* each has its golden keys */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("key_chain");
    TCase *tcase = tcase_create("key_chain");
    tcase_add_loop_test(tcase, golden, 0, KVT_ARRAY_LEN(vectors));
    tcase_add_loop_test(tcase, a_chain_goes_on_behind_its_parent, 0, KVT_ARRAY_LEN(vectors));
    tcase_add_test(tcase, refusals);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
