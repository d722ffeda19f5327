/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_api.h"

#include <dlfcn.h>
#include <string.h>

#include "kvt/util.h"

#define LIBRARY_DEFAULT   "libcuda.so.1"
#define RESULT_NO_MEMORY  2u
#define RESULT_NO_DEVICE  100u
#define RESULT_BAD_DEVICE 101u

enum kvt_status kvt_cuda_api_load(struct kvt_cuda_api *api, const char *library,
                                  struct kvt_error *err)
{
    const char *name = library != NULL ? library : LIBRARY_DEFAULT;
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return kvt_error_set(err, KVT_ERR_NOTSUP,
                             "cuda: cannot load %s: %s; is the driver of the GPU visible here?",
                             name, dlerror());
    memset(api, 0, sizeof(*api));
    /* POSIX has function pointers fit in a void *; C has no cast that says so. */
#define FIND(member, symbol, parameters)                                                           \
    {                                                                                              \
        void *found = dlsym(handle, #symbol);                                                      \
        memcpy((void *)&api->member, (void *)&found, sizeof(found));                               \
    }
#define REQUIRE(member, symbol, parameters)                                                        \
    if (api->member == NULL)                                                                       \
        return kvt_error_set(err, KVT_ERR_NOTSUP,                                                  \
                             "cuda: %s has no " #symbol "; update the driver", name);
    KVT_CUDA_REQUIRED(FIND)
    KVT_CUDA_OPTIONAL(FIND)
    KVT_CUDA_REQUIRED(REQUIRE)
#undef REQUIRE
#undef FIND
    return KVT_OK;
}

enum kvt_status kvt_cuda_error(const struct kvt_cuda_api *api, unsigned result, const char *what,
                               struct kvt_error *err)
{
    const char *name = "unknown error";
    (void)api->error_name(result, &name); /* it says itself when it knows no name */
    if (result == RESULT_NO_MEMORY)
        return kvt_error_set(err, KVT_ERR_NOMEM,
                             "cuda: %s: %s; leave the GPU some memory beside the engine's", what,
                             name);
    if (result == RESULT_NO_DEVICE || result == RESULT_BAD_DEVICE)
        return kvt_error_set(err, KVT_ERR_NOTSUP,
                             "cuda: %s: %s; check the device and CUDA_VISIBLE_DEVICES", what, name);
    return kvt_error_set(err, KVT_ERR_IO,
                         "cuda: %s: %s (%u); the engine's log may have an earlier fault of the GPU",
                         what, name, result);
}
