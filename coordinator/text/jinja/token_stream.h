// A cursor over tokens and what both parsers, of expressions and of statements, do with it.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja/lexer.h"

namespace pergola::jinja {

class TokenStream {
 public:
  // `tokens` ends with kEnd.
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[position_]; }
  const Token& next() const {
    return tokens_[position_ + 1 < tokens_.size() ? position_ + 1 : position_];
  }
  int line() const { return current().line; }
  void Skip() {
    if (position_ + 1 < tokens_.size()) ++position_;
  }
  bool IsOp(std::string_view op) const { return Is(current(), TokenType::kOperator, op); }
  bool IsName(std::string_view name) const { return Is(current(), TokenType::kName, name); }
  bool NextIsOp(std::string_view op) const { return Is(next(), TokenType::kOperator, op); }
  bool NextIsName(std::string_view name) const { return Is(next(), TokenType::kName, name); }
  bool Is(TokenType type) const { return current().type == type; }
  bool SkipOp(std::string_view op) { return SkipIf(IsOp(op)); }
  bool SkipName(std::string_view name) { return SkipIf(IsName(name)); }

  absl::Status ExpectOp(std::string_view op);
  absl::Status ExpectName(std::string_view name);
  absl::Status Expect(TokenType type);
  absl::StatusOr<std::string> TakeName();
  // "line N: unexpected 'token', WANTED expected".
  absl::Status Unexpected(std::string_view wanted) const;

 private:
  static bool Is(const Token& token, TokenType type, std::string_view text) {
    return token.type == type && token.text == text;
  }
  bool SkipIf(bool condition) {
    if (condition) Skip();
    return condition;
  }

  std::vector<Token> tokens_;
  size_t position_ = 0;
};

}  // namespace pergola::jinja
