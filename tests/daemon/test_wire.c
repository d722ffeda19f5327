/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/util.h"
#include "kvt/wire_check.h"

#include <check.h>
#include <stdbool.h>
#include <string.h>

static _Alignas(8) uint8_t buf[KVT_WIRE_BYTES_MAX + 8];

static void *begin(uint16_t type, size_t bytes)
{
    struct kvt_wire_header *h = (void *)buf;
    memset(buf, 0, sizeof(buf));
    h->type = type;
    h->bytes = (uint32_t)bytes;
    h->op = 7;
    return buf;
}

/* Every length but the right one ends the session. */
static void only_length(size_t right)
{
    struct kvt_wire_header *h = (void *)buf;
    for (size_t n = 0; n <= right + 64; n++) {
        h->bytes = (uint32_t)n;
        enum kvt_status status = kvt_wire_request_check(buf, n);
        ck_assert_int_eq(status, n == right ? KVT_OK : KVT_ERR_PROTO);
    }
    h->bytes = (uint32_t)right;
    ck_assert_int_eq(kvt_wire_request_check(buf, right - 1), KVT_ERR_PROTO);
    h->reserved = 1;
    ck_assert_int_eq(kvt_wire_request_check(buf, right), KVT_ERR_PROTO);
    h->reserved = 0;
}

START_TEST(fixed_messages)
{
    static const struct {
        uint16_t type;
        size_t bytes;
    } fixed[] = {{KVT_WIRE_PING, 16},      {KVT_WIRE_NS_OPEN, 528}, {KVT_WIRE_RELEASE, 24},
                 {KVT_WIRE_LOAD_DONE, 16}, {KVT_WIRE_CANCEL, 16},   {KVT_WIRE_STATS, 16}};
    begin(fixed[_i].type, fixed[_i].bytes);
    only_length(fixed[_i].bytes);
}
END_TEST

START_TEST(hello)
{
    struct kvt_wire_hello *m = begin(KVT_WIRE_HELLO, sizeof(*m));
    m->magic = KVT_WIRE_MAGIC;
    only_length(sizeof(*m));
    m->version = 99; /* is answered, not refused here */
    ck_assert_int_eq(kvt_wire_request_check(m, sizeof(*m)), KVT_OK);
    memset(m->client, 'x', sizeof(m->client));
    ck_assert_int_eq(kvt_wire_request_check(m, sizeof(*m)), KVT_ERR_PROTO);
    m->client[0] = '\0';
    m->magic ^= 1;
    ck_assert_int_eq(kvt_wire_request_check(m, sizeof(*m)), KVT_ERR_PROTO);
}
END_TEST

START_TEST(keys)
{
    struct kvt_wire_lookup *lookup = begin(KVT_WIRE_LOOKUP, sizeof(*lookup) + 3 * 32);
    lookup->n_keys = 3;
    only_length(sizeof(*lookup) + 3 * 32);
    lookup->flags = 2;
    ck_assert_int_eq(kvt_wire_request_check(lookup, lookup->h.bytes), KVT_ERR_INVAL);
    lookup = begin(KVT_WIRE_LOOKUP, sizeof(*lookup));
    ck_assert_int_eq(kvt_wire_request_check(lookup, sizeof(*lookup)), KVT_ERR_INVAL);
    lookup->n_keys = UINT32_MAX; /* times 32 is 0 past 32 bits */
    ck_assert_int_eq(kvt_wire_request_check(lookup, sizeof(*lookup)), KVT_ERR_PROTO);
    lookup = begin(KVT_WIRE_LOOKUP, sizeof(*lookup) + 1025 * 32);
    lookup->n_keys = 1025;
    ck_assert_int_eq(kvt_wire_request_check(lookup, lookup->h.bytes), KVT_ERR_INVAL);

    struct kvt_wire_reserve *reserve = begin(KVT_WIRE_RESERVE, sizeof(*reserve) + 2 * 32);
    reserve->n_keys = 2;
    reserve->flags = KVT_STORE_PARENT | KVT_STORE_DURABLE;
    only_length(sizeof(*reserve) + 2 * 32);
    reserve->h.op = 0;
    ck_assert_int_eq(kvt_wire_request_check(reserve, reserve->h.bytes), KVT_ERR_INVAL);
    reserve->h.op = 1;
    reserve->flags = KVT_LOAD_PREFETCH;
    ck_assert_int_eq(kvt_wire_request_check(reserve, reserve->h.bytes), KVT_ERR_INVAL);

    struct kvt_wire_load *load = begin(KVT_WIRE_LOAD, sizeof(*load) + 1024 * 32);
    load->n_keys = 1024;
    load->flags = KVT_LOAD_PREFETCH;
    ck_assert_int_eq(kvt_wire_request_check(load, load->h.bytes), KVT_OK);
    load->reserved = 1;
    ck_assert_int_eq(kvt_wire_request_check(load, load->h.bytes), KVT_ERR_INVAL);
    load->reserved = 0;
    load->flags = KVT_STORE_DURABLE;
    ck_assert_int_eq(kvt_wire_request_check(load, load->h.bytes), KVT_ERR_INVAL);
}
END_TEST

START_TEST(commit)
{
    struct kvt_wire_commit *m = begin(KVT_WIRE_COMMIT, sizeof(*m) + 16 + 3 * 4 * 8);
    m->n_items = 3;
    ck_assert_int_eq(kvt_wire_request_check(m, m->h.bytes), KVT_OK);
    ck_assert_int_eq(kvt_wire_commit_check(m, 4), KVT_OK);
    ck_assert_int_eq(kvt_wire_commit_check(m, 5), KVT_ERR_PROTO);
    ck_assert_ptr_eq(kvt_wire_commit_sums(m), buf + sizeof(*m) + 16);
    m->flags = KVT_COMMIT_ABORT;
    ck_assert_int_eq(kvt_wire_commit_check(m, 4), KVT_ERR_PROTO);
    m->h.bytes = sizeof(*m) + 16;
    ck_assert_int_eq(kvt_wire_request_check(m, m->h.bytes), KVT_OK);
    ck_assert_int_eq(kvt_wire_commit_check(m, 4), KVT_OK);
    m->h.bytes = sizeof(*m) + 12;
    ck_assert_int_eq(kvt_wire_request_check(m, m->h.bytes), KVT_ERR_PROTO);
    m->n_items = 0;
    m->h.bytes = sizeof(*m);
    ck_assert_int_eq(kvt_wire_request_check(m, m->h.bytes), KVT_ERR_INVAL);
    m->n_items = 0x40000000; /* times 4 is 0 in 32 bits */
    ck_assert_int_eq(kvt_wire_request_check(m, m->h.bytes), KVT_ERR_PROTO);
}
END_TEST

START_TEST(no_other_type)
{
    for (unsigned type = 0; type <= UINT16_MAX; type++) {
        bool known = type == KVT_WIRE_HELLO || type == KVT_WIRE_PING || type == KVT_WIRE_NS_OPEN ||
                     type == KVT_WIRE_LOOKUP || type == KVT_WIRE_RELEASE ||
                     type == KVT_WIRE_RESERVE || type == KVT_WIRE_COMMIT || type == KVT_WIRE_LOAD ||
                     type == KVT_WIRE_LOAD_DONE || type == KVT_WIRE_CANCEL ||
                     type == KVT_WIRE_STATS;
        begin((uint16_t)type, 16);
        if (!known)
            ck_assert_int_eq(kvt_wire_request_check(buf, 16), KVT_ERR_PROTO);
    }
}
END_TEST

static struct kvt_ns_desc good_desc(void)
{
    return (struct kvt_ns_desc){.model = "m", .n_segments = 4, .chunk_bytes = 4096};
}

START_TEST(descriptors)
{
    struct kvt_error err;
    struct kvt_ns_desc d = good_desc();
    ck_assert_int_eq(kvt_ns_desc_check(&d, &err), KVT_OK);
#define REFUSED(change, word)                                                                      \
    do {                                                                                           \
        d = good_desc();                                                                           \
        change;                                                                                    \
        ck_assert_int_eq(kvt_ns_desc_check(&d, &err), KVT_ERR_INVAL);                              \
        ck_assert_msg(strstr(err.msg, word) != NULL, "%s", err.msg);                               \
    } while (0)
    REFUSED(d.model[0] = 0, "model");
    REFUSED(d.model[5] = 'x', "model");
    REFUSED(memset(d.salt, 'x', sizeof(d.salt)), "salt");
    REFUSED(d.n_segments = 0, "n_segments");
    REFUSED(d.n_segments = 385, "n_segments");
    REFUSED(d.n_segments = 3, "divide");
    REFUSED(d.chunk_bytes = 0, "chunk_bytes");
    REFUSED(d.chunk_bytes = KVT_CHUNK_BYTES_MAX + 1, "chunk_bytes");
    REFUSED((d.tp_rank = 2, d.tp_size = 2), "tp_rank");
    REFUSED(d.pp_rank = 1, "pp_rank");
    REFUSED(d.reserved[95] = 1, "reserved");
#undef REFUSED
}
END_TEST

START_TEST(ids_differ_with_the_descriptor)
{
    struct kvt_ns_desc d = good_desc();
    uint8_t a[KVT_NS_ID_BYTES];
    uint8_t b[KVT_NS_ID_BYTES];
    kvt_ns_id(&d, a);
    kvt_ns_id(&d, b);
    ck_assert_mem_eq(a, b, sizeof(a));
    d.kv_group = 1;
    kvt_ns_id(&d, b);
    ck_assert_mem_ne(a, b, sizeof(a));
}
END_TEST

/* What is stored is found again under it by other releases. */
START_TEST(golden_id)
{
    static const uint8_t wanted[KVT_NS_ID_BYTES] = {0xf9, 0xf6, 0x2a, 0x52, 0x60, 0x53, 0x25, 0x41,
                                                    0x69, 0x8b, 0x38, 0x71, 0x1b, 0xa8, 0x4c, 0x09,
                                                    0x35, 0xf8, 0xfe, 0x77, 0xba, 0xbb, 0xac, 0x12,
                                                    0x08, 0x20, 0xb7, 0xa6, 0x0e, 0xd2, 0x50, 0xba};
    const struct kvt_ns_desc d = {.model = "m",
                                  .revision = "r",
                                  .layout = "l",
                                  .salt = "s",
                                  .hash_algo = "h",
                                  .dtype = "t",
                                  .n_layers = 1,
                                  .n_kv_heads = 2,
                                  .head_dim = 3,
                                  .tokens_per_chunk = 4,
                                  .tp_size = 5,
                                  .pp_size = 6,
                                  .kv_group = 7,
                                  .n_segments = 4,
                                  .chunk_bytes = 4096};
    uint8_t id[KVT_NS_ID_BYTES];
    kvt_ns_id(&d, id);
    ck_assert_mem_eq(id, wanted, sizeof(id));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("wire");
    TCase *tcase = tcase_create("wire");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, fixed_messages, 0, 6);
    tcase_add_test(tcase, hello);
    tcase_add_test(tcase, keys);
    tcase_add_test(tcase, commit);
    tcase_add_test(tcase, no_other_type);
    tcase_add_test(tcase, descriptors);
    tcase_add_test(tcase, ids_differ_with_the_descriptor);
    tcase_add_test(tcase, golden_id);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? 0 : 1;
}
