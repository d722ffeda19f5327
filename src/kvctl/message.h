/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of the control API as JSON, by their descriptors: no field is forgotten. */
#ifndef KVT_KVCTL_MESSAGE_H
#define KVT_KVCTL_MESSAGE_H

#include <jansson.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

/**
 * Field names as in the .proto; bytes and ids (fixed64) in hexadecimal, enums as their name in
 * lower case without the enum's ("valid"), messages that are not set as null.
 */
json_t *kvctl_message_json(const ProtobufCMessage *message);

/** Bytes as hexadecimal digits; text: 2 * n + 1. */
void kvctl_hex(const uint8_t *bytes, size_t n, char *text);
/** The other way; false: not 2 * n digits. */
bool kvctl_unhex(const char *text, uint8_t *bytes, size_t n);

#endif
