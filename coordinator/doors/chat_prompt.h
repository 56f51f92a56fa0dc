// From a conversation to the GenerateRequest that answers it: limits checked, rendered by the
// model's own template, tokenised once. Not for what a request says beside its prompt
// (request_builder.h).
#pragma once

#include <cstdint>
#include <ctime>
#include <string_view>

#include "coordinator/doors/call_status.h"
#include "coordinator/doors/request_builder.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

// Where violations of a conversation's prompt stand, and the prefix of all others.
inline constexpr char kChatPromptPath[] = "messages";
inline constexpr char kChatFieldPrefix[] = "generate.";

// Parses a serialised ChatRequest; false, with the reason in `violations`, if it is none or holds
// more messages than allowed, which are counted before memory is taken for them.
bool ParseChat(std::string_view bytes, v1::ChatRequest* chat, Violations* violations);

// Moves `chat`'s generate into `request` and gives it the prompt's ids as tokens. `now`: the local
// time that a template may ask for. Not OK: NOT_FOUND for another model's name, FAILED_PRECONDITION
// for a model that cannot chat, INVALID_ARGUMENT for the rest, what the template raises included.
google::rpc::Status BuildChatPrompt(const ServedModel& served, uint64_t vocabulary_size,
                                    const std::tm& now, v1::ChatRequest* chat,
                                    v1::GenerateRequest* request);

}  // namespace pergola
