/* SPDX-License-Identifier: Apache-2.0 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "kvt/slot_header.h"

static struct kvt_slot_header header_make(void)
{
    struct kvt_slot_header header = {.magic = KVT_SLOT_MAGIC,
                                     .version = KVT_SLOT_VERSION,
                                     .n_segments = 4,
                                     .chunk_bytes = 4096,
                                     .generation = 77};
    memset(&header.key, 0xa5, sizeof(header.key));
    memset(&header.parent, 0x5a, sizeof(header.parent));
    memset(header.ns_id, 0x3c, sizeof(header.ns_id));
    for (unsigned i = 0; i < 4; i++)
        header.sums[i] = i * 1234567;
    kvt_slot_header_seal(&header);
    return header;
}

static enum kvt_status check_as(const struct kvt_slot_header *page,
                                const struct kvt_slot_header *want)
{
    return kvt_slot_header_check(page, &want->key, want->ns_id, want->digest, want->chunk_bytes,
                                 want->n_segments);
}

START_TEST(sums_are_those_of_the_page)
{
    struct kvt_slot_header header = header_make();
    uint64_t digest = header.digest;
    uint64_t page_sum = header.page_sum;
    header.page_sum = 0;
    ck_assert_uint_eq(XXH3_64bits(&header, sizeof(header)), page_sum);
    header.digest = 0;
    header.generation = 0;
    memset(&header.parent, 0, sizeof(header.parent));
    ck_assert_uint_eq(XXH3_64bits(&header, sizeof(header)), digest);
}
END_TEST

/* What is known of a chunk makes its digest; anything else makes another. */
START_TEST(a_chunk_is_known_without_its_page)
{
    struct kvt_slot_header good = header_make();
    for (int field = 0; field < 8; field++) {
        struct kvt_slot_header h = good;
        h.key.bytes[31] ^= field == 1;
        h.ns_id[0] ^= field == 2;
        h.chunk_bytes += field == 3;
        h.sums[0] ^= field == 4;
        h.sums[3] ^= field == 5 ? UINT64_C(1) << 63 : 0;
        h.n_segments -= field == 6;
        h.digest ^= field == 7;
        ck_assert_int_eq(
            kvt_chunk_check(&h.key, h.ns_id, h.digest, h.chunk_bytes, h.sums, h.n_segments),
            field == 0 ? KVT_OK : KVT_ERR_CORRUPT);
    }
    ck_assert_int_eq(
        kvt_chunk_check(&good.key, good.ns_id, good.digest, good.chunk_bytes, good.sums, 0),
        KVT_ERR_CORRUPT);
    ck_assert_int_eq(kvt_chunk_check(&good.key, good.ns_id, good.digest, good.chunk_bytes,
                                     good.sums, KVT_SEGMENTS_MAX + 1),
                     KVT_ERR_CORRUPT);
}
END_TEST

START_TEST(every_flipped_bit_is_seen)
{
    struct kvt_slot_header good = header_make();
    ck_assert_int_eq(check_as(&good, &good), KVT_OK);
    for (unsigned bit = 0; bit < 8 * sizeof(good); bit++) {
        struct kvt_slot_header bad = good;
        ((unsigned char *)&bad)[bit / 8] ^= (unsigned char)(1u << bit % 8);
        ck_assert_int_ne(check_as(&bad, &good), KVT_OK);
    }
}
END_TEST

/* A page that is whole in itself, but not the one that was asked for. */
START_TEST(another_page_is_refused)
{
    struct kvt_slot_header good = header_make();
    for (int field = 0; field < 5; field++) {
        struct kvt_slot_header other = good;
        enum kvt_status want = KVT_ERR_CORRUPT;
        switch (field) {
        case 0:
            other.key.bytes[31] ^= 1;
            break;
        case 1:
            other.ns_id[0] ^= 1;
            break;
        case 2:
            other.chunk_bytes += 4;
            break;
        case 3:
            other.n_segments = 2;
            break;
        default:
            other.version++;
            want = KVT_ERR_VERSION;
        }
        kvt_slot_header_seal(&other);
        ck_assert_int_eq(check_as(&other, &good), want);
        /* Also with its own digest: each field is compared for itself. */
        if (field < 4)
            ck_assert_int_eq(kvt_slot_header_check(&other, &good.key, good.ns_id, other.digest,
                                                   good.chunk_bytes, good.n_segments),
                             KVT_ERR_CORRUPT);
    }
    struct kvt_slot_header stale = good;
    stale.sums[0]--;
    kvt_slot_header_seal(&stale);
    ck_assert_int_eq(check_as(&stale, &good), KVT_ERR_CORRUPT);
}
END_TEST

START_TEST(segments_are_checked_one_by_one)
{
    unsigned char chunk[6000];
    uint64_t sums[3];
    for (unsigned i = 0; i < sizeof(chunk); i++)
        chunk[i] = (unsigned char)(i * 7);
    for (unsigned i = 0; i < 3; i++)
        sums[i] = XXH3_64bits(chunk + i * 2000u, 2000);
    ck_assert_int_eq(kvt_segments_check(chunk, sizeof(chunk), sums, 3), KVT_OK);
    for (unsigned i = 0; i < sizeof(chunk); i += 97) {
        chunk[i] ^= 4;
        ck_assert_int_eq(kvt_segments_check(chunk, sizeof(chunk), sums, 3), KVT_ERR_CORRUPT);
        chunk[i] ^= 4;
    }
    ck_assert_int_eq(kvt_segments_check(chunk, sizeof(chunk), sums, 0), KVT_ERR_CORRUPT);
    ck_assert_int_eq(kvt_segments_check(chunk, sizeof(chunk), sums, 7), KVT_ERR_CORRUPT);
    ck_assert_int_eq(kvt_segments_check(chunk, sizeof(chunk), sums, KVT_SEGMENTS_MAX + 1),
                     KVT_ERR_CORRUPT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("slot_header");
    TCase *tcase = tcase_create("checks");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, sums_are_those_of_the_page);
    tcase_add_test(tcase, a_chunk_is_known_without_its_page);
    tcase_add_test(tcase, every_flipped_bit_is_seen);
    tcase_add_test(tcase, another_page_is_refused);
    tcase_add_test(tcase, segments_are_checked_one_by_one);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    int n_failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
