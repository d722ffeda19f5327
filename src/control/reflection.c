/* SPDX-License-Identifier: Apache-2.0 */
/* Server reflection, v1 and v1alpha, whose messages are the same on the wire. */
#include "kvt/reflection_tables.h"

#include <string.h>

#include "reflection.pb-c.h"
#include "request.h"

typedef Grpc__Reflection__V1__ServerReflectionRequest reflection_request;
typedef Grpc__Reflection__V1__ServerReflectionResponse reflection_response;

static bool names_has(const char *const *names, const char *name)
{
    for (; *names != NULL; names++) {
        if (strcmp(*names, name) == 0)
            return true;
    }
    return false;
}

static void error_set(struct request *r, reflection_response *out, grpc_status_code code,
                      const char *text)
{
    Grpc__Reflection__V1__ErrorResponse *error = request_alloc(r, 1, sizeof(*error));
    if (error == NULL)
        return;
    grpc__reflection__v1__error_response__init(error);
    error->error_code = (int32_t)code;
    error->error_message = (char *)text;
    out->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    out->error_response = error;
}

static void file_set(struct request *r, reflection_response *out,
                     const struct kvt_reflection_file *file)
{
    Grpc__Reflection__V1__FileDescriptorResponse *files = request_alloc(r, 1, sizeof(*files));
    ProtobufCBinaryData *bytes = request_alloc(r, 1, sizeof(*bytes));
    if (files == NULL || bytes == NULL)
        return;
    grpc__reflection__v1__file_descriptor_response__init(files);
    *bytes = (ProtobufCBinaryData){.len = file->n_bytes, .data = (uint8_t *)file->bytes};
    files->file_descriptor_proto = bytes;
    files->n_file_descriptor_proto = 1;
    out->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    out->file_descriptor_response = files;
}

static void find_file(struct request *r, reflection_response *out, const char *name, bool by_symbol)
{
    for (const struct kvt_reflection_file *f = kvt_reflection_files; f->name != NULL; f++) {
        if (by_symbol ? names_has(f->symbols, name) : strcmp(f->name, name) == 0) {
            file_set(r, out, f);
            return;
        }
    }
    error_set(r, out, GRPC_STATUS_NOT_FOUND,
              by_symbol ? "symbol: none of the served files has it; list the services"
                        : "file: is not served; look it up by a symbol");
}

static void list_services(struct request *r, reflection_response *out)
{
    Grpc__Reflection__V1__ListServiceResponse *list = request_alloc(r, 1, sizeof(*list));
    size_t n = 0;
    for (const struct kvt_reflection_file *f = kvt_reflection_files; f->name != NULL; f++) {
        for (const char *const *name = f->services; *name != NULL; name++)
            n++;
    }
    Grpc__Reflection__V1__ServiceResponse **all = request_alloc(r, n, sizeof(void *));
    Grpc__Reflection__V1__ServiceResponse *services = request_alloc(r, n, sizeof(*services));
    if (list == NULL || all == NULL || services == NULL)
        return;
    grpc__reflection__v1__list_service_response__init(list);
    for (const struct kvt_reflection_file *f = kvt_reflection_files; f->name != NULL; f++) {
        for (const char *const *name = f->services; *name != NULL; name++) {
            Grpc__Reflection__V1__ServiceResponse *service = &services[list->n_service];
            grpc__reflection__v1__service_response__init(service);
            service->name = (char *)*name;
            all[list->n_service++] = service;
        }
    }
    list->service = all;
    out->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    out->list_services_response = list;
}

/* There are no extensions in proto3. */
static void find_extensions(struct request *r, reflection_response *out, const char *type)
{
    Grpc__Reflection__V1__ExtensionNumberResponse *none = request_alloc(r, 1, sizeof(*none));
    bool known = false;
    for (const struct kvt_reflection_file *f = kvt_reflection_files; f->name != NULL; f++)
        known = known || names_has(f->symbols, type);
    if (none == NULL)
        return;
    if (!known) {
        error_set(r, out, GRPC_STATUS_NOT_FOUND,
                  "type: none of the served files has it; list the services");
        return;
    }
    grpc__reflection__v1__extension_number_response__init(none);
    none->base_type_name = (char *)type;
    out->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ALL_EXTENSION_NUMBERS_RESPONSE;
    out->all_extension_numbers_response = none;
}

static void reflect(struct request *r)
{
    const reflection_request *in = (const void *)r->in;
    reflection_response *out = request_alloc(r, 1, sizeof(*out));
    if (out == NULL)
        return;
    grpc__reflection__v1__server_reflection_response__init(out);
    out->valid_host = in->host;
    out->original_request = (reflection_request *)in;
    switch (in->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        find_file(r, out, in->file_by_filename, false);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        find_file(r, out, in->file_containing_symbol, true);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        list_services(r, out);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        find_extensions(r, out, in->all_extension_numbers_of_type);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION:
        error_set(r, out, GRPC_STATUS_NOT_FOUND, "extension: the served files have none");
        break;
    default:
        error_set(r, out, GRPC_STATUS_INVALID_ARGUMENT,
                  "message_request: asks for nothing; set one of its fields");
        break;
    }
    r->out = &out->base;
}

const struct method reflection_methods[] = {
    {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", METHOD_BIDI,
     &grpc__reflection__v1__server_reflection_request__descriptor, reflect},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", METHOD_BIDI,
     &grpc__reflection__v1__server_reflection_request__descriptor, reflect},
    {0},
};
