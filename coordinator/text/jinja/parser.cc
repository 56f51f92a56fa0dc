#include "coordinator/text/jinja/parser.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/expression_parser.h"
#include "coordinator/text/jinja/scope.h"
#include "coordinator/text/jinja/token_stream.h"
#include "coordinator/text/tokenizer.h"

namespace pergola::jinja {
namespace {

using Ends = std::vector<std::string_view>;

class Parser {
 public:
  Parser(TokenStream* stream, const JinjaLimits& limits)
      : stream_(*stream), expressions_(stream, limits) {}

  // Statements until one of `ends` (its name is then current), or the end of the template if there
  // are none.
  absl::StatusOr<Block> Statements(const Ends& ends);

 private:
  absl::StatusOr<StmtPtr> Statement();
  absl::StatusOr<StmtPtr> Dispatch(const std::string& tag);
  absl::StatusOr<Block> Body(const Ends& ends);
  absl::StatusOr<Block> WholeBody(std::string_view end);
  absl::StatusOr<StmtPtr> If();
  absl::StatusOr<StmtPtr> For();
  absl::StatusOr<StmtPtr> Set();
  absl::StatusOr<StmtPtr> Macro();
  absl::StatusOr<StmtPtr> CallBlock();
  absl::StatusOr<StmtPtr> FilterBlock();
  absl::StatusOr<StmtPtr> Generation();
  absl::StatusOr<StmtPtr> With();
  absl::Status Output(Block* statements);
  absl::Status UnknownTag(const std::string& tag) const;
  StmtPtr Node(StmtKind kind) const;

  TokenStream& stream_;
  ExpressionParser expressions_;
  std::vector<std::pair<std::string, int>> open_;  // tags and their lines
};

StmtPtr Parser::Node(StmtKind kind) const {
  auto node = std::make_unique<Stmt>();
  node->kind = kind;
  node->line = stream_.line();
  return node;
}

absl::Status Parser::Output(Block* statements) {
  StmtPtr node = Node(StmtKind::kOutput);
  stream_.Skip();
  ASSIGN_OR_RETURN(node->value, expressions_.Tuple());
  RETURN_IF_ERROR(stream_.Expect(TokenType::kVariableEnd));
  statements->push_back(std::move(node));
  return absl::OkStatus();
}

absl::StatusOr<Block> Parser::Statements(const Ends& ends) {
  Block statements;
  for (;;) {
    switch (stream_.current().type) {
      case TokenType::kData: {
        StmtPtr node = Node(StmtKind::kText);
        node->text = stream_.current().text;
        stream_.Skip();
        statements.push_back(std::move(node));
        break;
      }
      case TokenType::kVariableBegin:
        RETURN_IF_ERROR(Output(&statements));
        break;
      case TokenType::kBlockBegin: {
        stream_.Skip();
        for (const std::string_view end : ends) {
          if (stream_.IsName(end)) return statements;
        }
        ASSIGN_OR_RETURN(StmtPtr node, Statement());
        RETURN_IF_ERROR(stream_.Expect(TokenType::kBlockEnd));
        statements.push_back(std::move(node));
        break;
      }
      case TokenType::kEnd:
        if (ends.empty()) return statements;
        return TemplateError(stream_.line(), absl::StrCat("unexpected end of template: the block '",
                                                          open_.back().first, "' of line ",
                                                          open_.back().second, " is not closed"));
      default:
        return stream_.Unexpected("text or a tag");
    }
  }
}

absl::Status Parser::UnknownTag(const std::string& tag) const {
  for (const std::string_view known :
       {"include", "import", "from", "extends", "block", "autoescape"}) {
    if (tag == known) {
      return TemplateError(stream_.line(), absl::StrCat("the tag '", tag, "' is not supported"));
    }
  }
  if (open_.empty()) {
    return TemplateError(stream_.line(), absl::StrCat("encountered unknown tag '", tag, "'"));
  }
  return TemplateError(stream_.line(),
                       absl::StrCat("encountered unknown tag '", tag, "': the innermost block is '",
                                    open_.back().first, "' of line ", open_.back().second));
}

absl::StatusOr<StmtPtr> Parser::Statement() {
  if (!stream_.Is(TokenType::kName)) return stream_.Unexpected("a tag name");
  const std::string tag = stream_.current().text;
  RETURN_IF_ERROR(expressions_.Enter());
  open_.emplace_back(tag, stream_.line());
  auto node = Dispatch(tag);
  open_.pop_back();
  expressions_.Leave();
  return node;
}

absl::StatusOr<StmtPtr> Parser::Dispatch(const std::string& tag) {
  if (tag == "if") return If();
  if (tag == "for") return For();
  if (tag == "set") return Set();
  if (tag == "macro") return Macro();
  if (tag == "call") return CallBlock();
  if (tag == "filter") return FilterBlock();
  if (tag == "generation") return Generation();
  if (tag == "with") return With();
  if (tag == "break" || tag == "continue") {
    StmtPtr node = Node(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue);
    stream_.Skip();
    return node;
  }
  open_.pop_back();
  const absl::Status unknown = UnknownTag(tag);
  open_.emplace_back(tag, stream_.line());
  return unknown;
}

absl::StatusOr<Block> Parser::Body(const Ends& ends) {
  stream_.SkipOp(":");
  RETURN_IF_ERROR(stream_.Expect(TokenType::kBlockEnd));
  return Statements(ends);
}

absl::StatusOr<Block> Parser::WholeBody(std::string_view end) {
  ASSIGN_OR_RETURN(Block body, Body({end}));
  stream_.Skip();
  return body;
}

absl::StatusOr<StmtPtr> Parser::If() {
  StmtPtr node = Node(StmtKind::kIf);
  do {
    stream_.Skip();
    Branch branch;
    ASSIGN_OR_RETURN(branch.test, expressions_.Tuple(/*with_condition=*/false));
    ASSIGN_OR_RETURN(branch.body, Body({"elif", "else", "endif"}));
    node->branches.push_back(std::move(branch));
  } while (stream_.IsName("elif"));
  if (!stream_.IsName("else")) {
    stream_.Skip();
    return node;
  }
  stream_.Skip();
  ASSIGN_OR_RETURN(node->otherwise, WholeBody("endif"));
  return node;
}

absl::StatusOr<StmtPtr> Parser::For() {
  StmtPtr node = Node(StmtKind::kFor);
  stream_.Skip();
  ASSIGN_OR_RETURN(node->target, expressions_.Target(/*with_namespace=*/false, "in"));
  RETURN_IF_ERROR(stream_.ExpectName("in"));
  ASSIGN_OR_RETURN(node->value, expressions_.Tuple(/*with_condition=*/false, "recursive"));
  if (stream_.SkipName("if")) {
    ASSIGN_OR_RETURN(node->test, expressions_.Expression());
  }
  if (stream_.IsName("recursive")) {
    return TemplateError(stream_.line(), "recursive loops are not supported");
  }
  ASSIGN_OR_RETURN(node->body, Body({"endfor", "else"}));
  const bool has_else = stream_.IsName("else");
  stream_.Skip();
  if (has_else) {
    ASSIGN_OR_RETURN(node->otherwise, WholeBody("endfor"));
  }
  return node;
}

absl::StatusOr<StmtPtr> Parser::Set() {
  StmtPtr node = Node(StmtKind::kSet);
  stream_.Skip();
  ASSIGN_OR_RETURN(node->target, expressions_.Target(/*with_namespace=*/true));
  if (stream_.SkipOp("=")) {
    ASSIGN_OR_RETURN(node->value, expressions_.Tuple());
    return node;
  }
  node->kind = StmtKind::kSetBlock;
  ASSIGN_OR_RETURN(node->value, expressions_.BlockFilters(/*inline_start=*/false));
  ASSIGN_OR_RETURN(node->body, WholeBody("endset"));
  return node;
}

absl::StatusOr<StmtPtr> Parser::Macro() {
  StmtPtr node = Node(StmtKind::kMacro);
  stream_.Skip();
  node->function = std::make_unique<Function>();
  ASSIGN_OR_RETURN(node->target, expressions_.NameTarget());
  node->function->name = node->target->name;
  RETURN_IF_ERROR(expressions_.Signature(node->function.get()));
  ASSIGN_OR_RETURN(node->function->body, WholeBody("endmacro"));
  return node;
}

absl::StatusOr<StmtPtr> Parser::CallBlock() {
  StmtPtr node = Node(StmtKind::kCallBlock);
  stream_.Skip();
  node->function = std::make_unique<Function>();
  node->function->name = "caller";
  if (stream_.IsOp("(")) RETURN_IF_ERROR(expressions_.Signature(node->function.get()));
  ASSIGN_OR_RETURN(node->value, expressions_.Expression());
  if (node->value->kind != ExprKind::kCall) return TemplateError(node->line, "expected a call");
  ASSIGN_OR_RETURN(node->function->body, WholeBody("endcall"));
  return node;
}

absl::StatusOr<StmtPtr> Parser::Generation() {
  StmtPtr node = Node(StmtKind::kCallBlock);
  stream_.Skip();
  node->function = std::make_unique<Function>();
  ASSIGN_OR_RETURN(node->function->body, WholeBody("endgeneration"));
  return node;
}

absl::StatusOr<StmtPtr> Parser::FilterBlock() {
  StmtPtr node = Node(StmtKind::kFilterBlock);
  stream_.Skip();
  ASSIGN_OR_RETURN(node->value, expressions_.BlockFilters(/*inline_start=*/true));
  ASSIGN_OR_RETURN(node->body, WholeBody("endfilter"));
  return node;
}

absl::StatusOr<StmtPtr> Parser::With() {
  StmtPtr node = Node(StmtKind::kWith);
  stream_.Skip();
  while (!stream_.Is(TokenType::kBlockEnd)) {
    if (!node->with.empty()) RETURN_IF_ERROR(stream_.ExpectOp(","));
    ASSIGN_OR_RETURN(ExprPtr target, expressions_.Target(/*with_namespace=*/false));
    RETURN_IF_ERROR(stream_.ExpectOp("="));
    ASSIGN_OR_RETURN(ExprPtr value, expressions_.Expression());
    node->with.emplace_back(std::move(target), std::move(value));
  }
  ASSIGN_OR_RETURN(node->body, WholeBody("endwith"));
  return node;
}

}  // namespace

absl::StatusOr<Template> ParseTemplate(std::string_view source, const JinjaLimits& limits) {
  if (source.size() > limits.template_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the template has ", source.size(), " bytes; its budget is ", limits.template_bytes));
  }
  const int64_t invalid = FindInvalidUtf8(source);
  if (invalid >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the template is not valid UTF-8 at byte ", invalid));
  }
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  TokenStream stream(std::move(tokens));
  Template parsed;
  ASSIGN_OR_RETURN(parsed.body, Parser(&stream, limits).Statements({}));
  RETURN_IF_ERROR(BindNames(&parsed));
  return parsed;
}

}  // namespace pergola::jinja
