// The parts of tokenizer.json, one reader each. All: INVALID_ARGUMENT naming the field and value.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "base/status.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/tokenizer_parts.h"

namespace pergola {

// Published lists of steps have up to 6.
inline constexpr size_t kMaxSteps = 16;

template <typename Read>
absl::Status ForEachStepOf(const nlohmann::json* value, const std::string& path, const char* list,
                           const Read& read, size_t* count) {
  if (value == nullptr || value->is_null()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(*value, path));
  ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (++*count > kMaxSteps) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is beyond the limit of ", kMaxSteps, " steps"));
  }
  if (type != "Sequence") return read(fields, type);
  ASSIGN_OR_RETURN(const nlohmann::json* steps, fields.Array(list));
  for (size_t i = 0; i < steps->size(); ++i) {
    const std::string step_path = absl::StrCat(fields.PathOf(list), "[", i, "]");
    RETURN_IF_ERROR(ForEachStepOf(&(*steps)[i], step_path, list, read, count));
  }
  return absl::OkStatus();
}

// Calls `read(fields, type)` for `value`, or for each element of a Sequence in turn; null is
// nothing. `list` names the Sequence's field. Sequences in sequences count too.
template <typename Read>
absl::Status ForEachStep(const nlohmann::json* value, const std::string& path, const char* list,
                         const Read& read) {
  size_t count = 0;
  return ForEachStepOf(value, path, list, read, &count);
}

absl::Status ReadNormalizer(const nlohmann::json* value, TokenizerParts* parts);
// `*ends_in_bytes`: the last step is ByteLevel, so that words are raw bytes.
absl::Status ReadPreTokenizer(const nlohmann::json* value, TokenizerParts* parts,
                              bool* ends_in_bytes);
absl::Status ReadDecoder(const nlohmann::json* value, TokenizerParts* parts);
absl::Status ReadPostProcessor(const nlohmann::json* value, TokenizerParts* parts);
// A {"Regex": ...} or a {"String": ...} in field "pattern".
absl::StatusOr<Pattern> ReadPattern(const JsonFields& fields);

}  // namespace pergola
