#include "coordinator/text/jinja/token_stream.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace pergola::jinja {
namespace {

std::string Describe(const Token& token) {
  switch (token.type) {
    case TokenType::kData:
      return "template text";
    case TokenType::kBlockBegin:
      return "begin of statement block";
    case TokenType::kBlockEnd:
      return "end of statement block";
    case TokenType::kVariableBegin:
      return "begin of print statement";
    case TokenType::kVariableEnd:
      return "end of print statement";
    case TokenType::kString:
      return "a string";
    case TokenType::kInteger:
      return "an integer";
    case TokenType::kFloat:
      return "a float";
    case TokenType::kEnd:
      return "end of template";
    default:
      return absl::StrCat("'", token.text, "'");
  }
}

}  // namespace

absl::Status TokenStream::Unexpected(std::string_view wanted) const {
  return TemplateError(
      line(), absl::StrCat("unexpected ", Describe(current()), ", expected ", ToAbsl(wanted)));
}

absl::Status TokenStream::ExpectOp(std::string_view op) {
  if (!SkipOp(op)) return Unexpected(absl::StrCat("'", ToAbsl(op), "'"));
  return absl::OkStatus();
}

absl::Status TokenStream::ExpectName(std::string_view name) {
  if (!SkipName(name)) return Unexpected(absl::StrCat("'", ToAbsl(name), "'"));
  return absl::OkStatus();
}

absl::Status TokenStream::Expect(TokenType type) {
  if (!Is(type)) return Unexpected(Describe({type, 0, "", Value()}));
  Skip();
  return absl::OkStatus();
}

absl::StatusOr<std::string> TokenStream::TakeName() {
  if (!Is(TokenType::kName)) return Unexpected("a name");
  std::string name = current().text;
  Skip();
  return name;
}

}  // namespace pergola::jinja
