/* SPDX-License-Identifier: Apache-2.0 */
#include "kvt/namespace.h"

#include <stdbool.h>
#include <string.h>

/* NUL terminated, and NUL from there to the end, so that equal strings are equal bytes. */
static bool text_canonical(const char *text, size_t bytes)
{
    const char *end = memchr(text, '\0', bytes);
    if (end == NULL)
        return false;
    for (; end < text + bytes; end++) {
        if (*end != '\0')
            return false;
    }
    return true;
}

enum kvt_status kvt_ns_desc_check(const struct kvt_ns_desc *desc, struct kvt_error *err)
{
    const struct {
        const char *name;
        const char *text;
        size_t bytes;
    } texts[] = {
        {"model", desc->model, sizeof(desc->model)},
        {"revision", desc->revision, sizeof(desc->revision)},
        {"layout", desc->layout, sizeof(desc->layout)},
        {"salt", desc->salt, sizeof(desc->salt)},
        {"hash_algo", desc->hash_algo, sizeof(desc->hash_algo)},
        {"dtype", desc->dtype, sizeof(desc->dtype)},
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (!text_canonical(texts[i].text, texts[i].bytes))
            return kvt_error_set(err, KVT_ERR_INVAL,
                                 "namespace: %s must end with NUL and be NUL padded, at most %zu "
                                 "bytes",
                                 texts[i].name, texts[i].bytes - 1);
    }
    if (desc->model[0] == '\0')
        return kvt_error_set(err, KVT_ERR_INVAL, "namespace: model is empty; name the model");
    if (desc->chunk_bytes < 1 || desc->chunk_bytes > KVT_CHUNK_BYTES_MAX)
        return kvt_error_set(
            err, KVT_ERR_INVAL, "namespace: chunk_bytes is %llu, must be 1 to %llu",
            (unsigned long long)desc->chunk_bytes, (unsigned long long)KVT_CHUNK_BYTES_MAX);
    if (desc->n_segments < 1 || desc->n_segments > KVT_SEGMENTS_MAX)
        return kvt_error_set(err, KVT_ERR_INVAL, "namespace: n_segments is %u, must be 1 to %d",
                             desc->n_segments, KVT_SEGMENTS_MAX);
    if (desc->chunk_bytes % desc->n_segments != 0)
        return kvt_error_set(err, KVT_ERR_INVAL,
                             "namespace: n_segments %u does not divide chunk_bytes %llu",
                             desc->n_segments, (unsigned long long)desc->chunk_bytes);
    /* A size of 0 means the axis is not used. */
    if (desc->tp_size == 0 ? desc->tp_rank != 0 : desc->tp_rank >= desc->tp_size)
        return kvt_error_set(err, KVT_ERR_INVAL, "namespace: tp_rank %u is not below tp_size %u",
                             desc->tp_rank, desc->tp_size);
    if (desc->pp_size == 0 ? desc->pp_rank != 0 : desc->pp_rank >= desc->pp_size)
        return kvt_error_set(err, KVT_ERR_INVAL, "namespace: pp_rank %u is not below pp_size %u",
                             desc->pp_rank, desc->pp_size);
    for (size_t i = 0; i < sizeof(desc->reserved); i++) {
        if (desc->reserved[i] != 0)
            return kvt_error_set(err, KVT_ERR_INVAL, "namespace: reserved byte %zu is not zero", i);
    }
    return KVT_OK;
}
