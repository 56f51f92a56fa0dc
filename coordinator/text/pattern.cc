#include "coordinator/text/pattern.h"

#include "base/status.h"

namespace pergola {

void AddMatch(ByteRange match, size_t* covered, Ranges* ranges) {
  if (match.begin > *covered) ranges->push_back({{*covered, match.begin}, false});
  ranges->push_back({match, true});
  *covered = match.end;
}

absl::StatusOr<Pattern> Pattern::OfRegex(std::string_view pattern) {
  Pattern made;
  ASSIGN_OR_RETURN(made.regex, Regex::Create(pattern));
  return made;
}

Pattern Pattern::OfString(std::string literal) {
  Pattern made;
  made.literal = std::move(literal);
  return made;
}

absl::Status Pattern::FindAll(std::string_view text, Regex::Workspace* workspace,
                              Ranges* ranges) const {
  ranges->clear();
  size_t covered = 0;
  if (regex != nullptr) {
    Regex::Cursor cursor(*regex, text, workspace);
    for (ByteRange match;;) {
      ASSIGN_OR_RETURN(const bool found, cursor.Next(&match));
      if (!found) break;
      AddMatch(match, &covered, ranges);
    }
  } else if (!literal.empty()) {
    for (size_t at; (at = text.find(literal, covered)) != text.npos;) {
      AddMatch({at, at + literal.size()}, &covered, ranges);
    }
  }
  if (covered < text.size()) ranges->push_back({{covered, text.size()}, false});
  return absl::OkStatus();
}

}  // namespace pergola
