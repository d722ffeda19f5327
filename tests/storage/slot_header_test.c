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
    header.digest = kvt_slot_header_digest(&header);
    return header;
}

static enum kvt_status check_as(const struct kvt_slot_header *page,
                                const struct kvt_slot_header *want)
{
    return kvt_slot_header_check(page, &want->key, want->ns_id, want->digest, want->chunk_bytes,
                                 want->n_segments);
}

START_TEST(digest_is_that_of_the_page_without_itself)
{
    struct kvt_slot_header header = header_make();
    uint64_t digest = header.digest;
    header.digest = 0;
    ck_assert_uint_eq(XXH3_64bits(&header, sizeof(header)), digest);
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
        other.digest = kvt_slot_header_digest(&other);
        ck_assert_int_eq(check_as(&other, &good), want);
        /* Also with its own digest: each field is compared for itself. */
        if (field < 4)
            ck_assert_int_eq(kvt_slot_header_check(&other, &good.key, good.ns_id, other.digest,
                                                   good.chunk_bytes, good.n_segments),
                             KVT_ERR_CORRUPT);
    }
    struct kvt_slot_header stale = good;
    stale.generation--;
    stale.digest = kvt_slot_header_digest(&stale);
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
    tcase_add_test(tcase, digest_is_that_of_the_page_without_itself);
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
