// Every bound that both sides of a wire must agree on, with its reason. Bounds of one module live
// in that module.
#pragma once

#include <cstdint>

namespace pergola {

// Raised whenever worker.proto changes in meaning.
inline constexpr uint32_t kProtocolVersion = 2;
// Raised whenever any bit of any computed logit or draw may change.
inline constexpr uint32_t kNumericsVersion = 2;

inline constexpr uint32_t kMaxBatchRequests = 256;   // GenerateBatch
inline constexpr uint32_t kMaxTextBytes = 4u << 20;  // a prompt as text
inline constexpr uint32_t kMaxChatMessages = 4096;
// Of all JSON texts of a conversation: what they hold takes up to 70 times as many bytes of memory.
inline constexpr uint32_t kMaxChatJsonBytes = 1u << 20;
inline constexpr uint32_t kMaxDetokenizeIds = 1u << 20;
inline constexpr uint32_t kMaxStopStrings = 16;
inline constexpr uint32_t kMaxStopStringBytes = 256;
inline constexpr uint32_t kMaxStopIds = 64;
inline constexpr uint32_t kMaxRequestIdBytes = 128;
inline constexpr float kMaxTemperature = 100.0F;
inline constexpr float kMaxPenalty = 100.0F;  // and of a logit bias
inline constexpr uint32_t kMaxLogitBiases = 1024;
inline constexpr uint32_t kMaxLogprobs = 20;
inline constexpr uint32_t kMaxSuppressedIds = 256;  // end-of-sequence and stop ids of a slot
inline constexpr uint32_t kMaxSequences = 128;      // of one request: n and best_of
// Metadata key by which a client says whom its requests are charged to, and the longest value.
inline constexpr char kTenantKey[] = "pergola-tenant";
inline constexpr uint32_t kMaxTenantBytes = 128;
inline constexpr uint32_t kDefaultMaxNewTokens = 2048;
// A gRPC message: a batch of 256 prompts of 64 KiB, or one plan of 4096 rows, fits well.
inline constexpr int kMaxMessageBytes = 64 << 20;
// Vocabulary sizes beyond this are not models but broken files.
inline constexpr uint32_t kMaxVocabulary = 4u << 20;
inline constexpr uint32_t kMaxLayers = 4096;
inline constexpr uint32_t kMaxHidden = 1u << 20;
// Longest head that attention's fixed scratch takes.
inline constexpr int64_t kMaxHeadDim = 512;

// What workers say of themselves is shown to people and kept for as long as the group is known.
inline constexpr uint32_t kMaxGroupNameBytes = 64;
inline constexpr uint32_t kMaxNameBytes = 256;  // a model, an architecture, a host, a phase of work
inline constexpr uint32_t kMaxHashBytes = 128;  // in hex: SHA-512 fits
inline constexpr uint32_t kMaxFaultTextBytes = 4096;  // longer texts are cut
// A Hello of kMaxLayers stages, each with a host and 500 pids, is the largest message of a
// worker or an operator but for results.
inline constexpr uint32_t kMaxControlMessageBytes = 16u << 20;

// Metadata key of the internal listener's calls.
inline constexpr char kJoinTokenKey[] = "pergola-join-token";
// Environment variable by which mpirun -x hands the token to the ranks.
inline constexpr char kJoinTokenVariable[] = "PERGOLA_JOIN_TOKEN";

// Exit codes. Codes of 128 and above tell a launcher to start the group again.
inline constexpr int kExitOk = 0;
inline constexpr int kExitUsage =
    2;  // bad flag, bad file, a layout the model cannot take: do not retry
inline constexpr int kExitRetryable = 130;  // a peer, a device or a network failed: start again
inline constexpr int kExitWatchdog = 131;   // a wait was overdue
inline constexpr int kExitOrphaned = 132;   // no coordinator for --orphan-timeout-ms

}  // namespace pergola
