// A model for the doors' tests without files: every byte is a token, so ids, text and limits can be
// read off a test.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/doors/request_builder.h"
#include "coordinator/text/tokenizer.h"
#include "google/rpc/error_details.pb.h"
#include "model/text_parts.h"

namespace pergola {

inline constexpr int32_t kEos = 256;
inline constexpr int32_t kBos = 257;
inline constexpr int32_t kVocabulary = 260;

// Id i below 256 is the byte i; BOS comes first where special tokens are added.
class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer() {
    for (int i = 0; i < 256; ++i) bytes_.emplace_back(1, static_cast<char>(i));
  }
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override {
    std::vector<int32_t> ids;
    if (add_special_tokens && !text.empty()) ids.push_back(kBos);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string text;
    for (const int32_t id : ids) text += std::string(TokenBytes(id, skip_special_tokens));
    return text;
  }
  std::string_view TokenBytes(int32_t id, bool skip_special_tokens) const override {
    if (id >= 0 && id < 256) return bytes_[static_cast<size_t>(id)];
    return skip_special_tokens ? "" : "<special>";
  }
  int32_t vocabulary_size() const override { return kVocabulary; }

 private:
  std::vector<std::string> bytes_;
};

inline TextParts ByteModelParts() {
  TextParts parts;
  parts.model_name = "bytes";
  parts.architecture = "test";
  parts.vocabulary_size = kVocabulary;
  parts.context_length = 4096;
  parts.defaults.eos_ids = {kEos};
  parts.chat_template =
      "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('nobody speaks') }}"
      "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[me]"
      "{% endif %}";
  parts.hash = "text hash";
  return parts;
}

// The violations in a status, "field: description"; empty if it carries none.
inline std::vector<std::string> ViolationsOf(const google::rpc::Status& status) {
  std::vector<std::string> lines;
  for (const auto& any : status.details()) {
    google::rpc::BadRequest bad;
    if (!any.UnpackTo(&bad)) continue;
    for (const auto& violation : bad.field_violations()) {
      lines.push_back(absl::StrCat(violation.field(), ": ", violation.description()));
    }
  }
  return lines;
}

}  // namespace pergola
