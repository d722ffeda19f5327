/* SPDX-License-Identifier: Apache-2.0 */
#include "message.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void kvctl_hex(const uint8_t *bytes, size_t n, char *text)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        text[2 * i] = digits[bytes[i] >> 4];
        text[2 * i + 1] = digits[bytes[i] & 15];
    }
    text[2 * n] = '\0';
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool kvctl_unhex(const char *text, uint8_t *bytes, size_t n)
{
    if (strlen(text) != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static json_t *bytes_json(const ProtobufCBinaryData *data)
{
    char *text = malloc(2 * data->len + 1);
    if (text == NULL)
        return NULL;
    kvctl_hex(data->data, data->len, text);
    json_t *json = json_string(text);
    free(text);
    return json;
}

/* LOG_LEVEL_WARN of LogLevel: "warn". What all names begin with is the enum's name. */
static json_t *enum_json(const ProtobufCEnumDescriptor *type, int number)
{
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(type, number);
    char text[64];
    if (value == NULL) {
        snprintf(text, sizeof(text), "%d", number);
        return json_string(text);
    }
    size_t common = 0, last = 0;
    for (;; common++) {
        for (unsigned i = 0; i < type->n_values; i++) {
            if (type->values[i].name[common] != value->name[common] || value->name[common] == '\0')
                goto differs;
        }
        if (value->name[common] == '_')
            last = common + 1;
    }
differs:
    snprintf(text, sizeof(text), "%s", value->name + last);
    for (char *c = text; *c != '\0'; c++)
        *c = (char)tolower((unsigned char)*c);
    return json_string(text);
}

/* Numbers past what JSON's readers take for an integer are text. */
static json_t *u64_json(uint64_t value)
{
    char text[32];
    if (value <= INT64_MAX)
        return json_integer((json_int_t)value);
    snprintf(text, sizeof(text), "%" PRIu64, value);
    return json_string(text);
}

struct pending {
    const ProtobufCMessage *message;
    json_t *object; /* borrowed: its parent has it */
};

struct work { /* messages inside a message that are still to be filled */
    struct pending *stack;
    size_t n, room;
};

static json_t *message_later(struct work *work, const ProtobufCMessage *message)
{
    if (message == NULL)
        return json_null();
    if (work->n == work->room) {
        size_t room = work->room > 0 ? 2 * work->room : 16;
        struct pending *stack = realloc(work->stack, room * sizeof(*stack));
        if (stack == NULL)
            return json_null();
        work->stack = stack;
        work->room = room;
    }
    work->stack[work->n] = (struct pending){.message = message, .object = json_object()};
    return work->stack[work->n++].object;
}

static json_t *value_json(struct work *work, const ProtobufCFieldDescriptor *field,
                          const void *value)
{
    char text[32];
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        return json_integer(*(const int32_t *)value);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return json_integer(*(const uint32_t *)value);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return json_integer(*(const int64_t *)value);
    case PROTOBUF_C_TYPE_UINT64:
        return u64_json(*(const uint64_t *)value);
    case PROTOBUF_C_TYPE_FIXED64:
        /* As text: readers of JSON keep 53 bits of a number. */
        snprintf(text, sizeof(text), strcmp(field->name, "id") == 0 ? "%" PRIu64 : "%" PRIx64,
                 *(const uint64_t *)value);
        return json_string(text);
    case PROTOBUF_C_TYPE_FLOAT:
        return json_real((double)*(const float *)value);
    case PROTOBUF_C_TYPE_DOUBLE:
        return json_real(*(const double *)value);
    case PROTOBUF_C_TYPE_BOOL:
        return json_boolean(*(const protobuf_c_boolean *)value);
    case PROTOBUF_C_TYPE_ENUM:
        return enum_json(field->descriptor, *(const int *)value);
    case PROTOBUF_C_TYPE_STRING:
        return json_string(*(char *const *)value != NULL ? *(char *const *)value : "");
    case PROTOBUF_C_TYPE_BYTES:
        return bytes_json(value);
    case PROTOBUF_C_TYPE_MESSAGE:
        return message_later(work, *(const ProtobufCMessage *const *)value);
    }
    return json_null();
}

static size_t value_bytes(const ProtobufCFieldDescriptor *field)
{
    switch (field->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return sizeof(uint32_t);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_ENUM:
        return sizeof(int);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    default:
        return sizeof(uint64_t);
    }
}

static void fields_add(struct work *work, const struct pending *what)
{
    const ProtobufCMessageDescriptor *type = what->message->descriptor;
    const char *base = (const char *)what->message;
    for (unsigned i = 0; i < type->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &type->fields[i];
        const char *member = base + field->offset;
        if (field->label != PROTOBUF_C_LABEL_REPEATED) {
            (void)json_object_set_new(what->object, field->name, value_json(work, field, member));
            continue;
        }
        size_t n = *(const size_t *)(const void *)(base + field->quantifier_offset);
        const char *items = *(const char *const *)(const void *)member;
        json_t *list = json_array();
        for (size_t j = 0; j < n; j++)
            (void)json_array_append_new(list,
                                        value_json(work, field, items + j * value_bytes(field)));
        (void)json_object_set_new(what->object, field->name, list);
    }
}

json_t *kvctl_message_json(const ProtobufCMessage *message)
{
    struct work work = {.stack = NULL};
    json_t *result = message_later(&work, message);
    while (work.n > 0) {
        struct pending next = work.stack[--work.n];
        fields_add(&work, &next);
    }
    free(work.stack);
    return result;
}
