// From received bytes to request messages, with an error a client can act on where protobuf only
// says "no". Works on raw bytes because gRPC answers UNIMPLEMENTED to what it cannot parse, and
// because a batch is parsed item by item: 64 MiB of empty items would be gigabytes as objects.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/doors/call_status.h"
#include "google/protobuf/message.h"

namespace pergola {

// Parses `bytes` into `message`. False, with the reason added to `violations`: invalid UTF-8 (with
// the field's path and byte offset), or not a message of this type.
bool ParseMessage(std::string_view bytes, google::protobuf::Message* message,
                  Violations* violations);

// The bytes of each item of a message's repeated field number 1 (the requests of a batch, the
// messages of a conversation), which point into `bytes`; at most `max_items` + 1. False, with the
// reason in `violations`, if the bytes are no message, which should be a `type`.
bool SplitItems(std::string_view bytes, size_t max_items, const std::string& type,
                std::vector<std::string_view>* items, Violations* violations);

}  // namespace pergola
