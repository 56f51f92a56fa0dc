// Calls, attributes, subscripts, filters and tests: what follows an operand.
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/expression_parser.h"

namespace pergola::jinja {
namespace {

// As Python's own bound once was; names are searched one by one.
constexpr size_t kMaxNamedArguments = 255;

absl::Status TooManyArguments(int line) {
  return TemplateError(line, absl::StrCat("more than ", kMaxNamedArguments, " named arguments"));
}

}  // namespace

absl::StatusOr<ExprPtr> ExpressionParser::Postfix(ExprPtr object) {
  for (;;) {
    if (stream_.IsOp(".")) {
      ASSIGN_OR_RETURN(object, Attribute(std::move(object)));
    } else if (stream_.IsOp("[")) {
      ASSIGN_OR_RETURN(object, Subscript(std::move(object)));
    } else if (stream_.IsOp("(")) {
      ASSIGN_OR_RETURN(object, Call(std::move(object)));
    } else {
      return object;
    }
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::FiltersAndTests(ExprPtr object) {
  for (;;) {
    if (stream_.IsOp("|")) {
      stream_.Skip();
      ASSIGN_OR_RETURN(object, Filter(std::move(object)));
    } else if (stream_.IsName("is")) {
      ASSIGN_OR_RETURN(object, Test(std::move(object)));
    } else if (stream_.IsOp("(")) {
      ASSIGN_OR_RETURN(object, Call(std::move(object)));
    } else {
      return object;
    }
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::Attribute(ExprPtr object) {
  ExprPtr node = Node(ExprKind::kAttribute);
  stream_.Skip();
  node->children.push_back(std::move(object));
  if (stream_.Is(TokenType::kInteger)) {  // a.0 is a[0]
    node->kind = ExprKind::kItem;
    ExprPtr index = Node(ExprKind::kConst);
    index->value = stream_.current().number;
    stream_.Skip();
    node->children.push_back(std::move(index));
    return Done(std::move(node));
  }
  if (!stream_.Is(TokenType::kName)) return stream_.Unexpected("a name or a number");
  ASSIGN_OR_RETURN(node->name, stream_.TakeName());
  return Done(std::move(node));
}

absl::StatusOr<ExprPtr> ExpressionParser::Subscript(ExprPtr object) {
  ExprPtr node = Node(ExprKind::kItem);
  stream_.Skip();
  node->children.push_back(std::move(object));
  const auto ends = [this] { return stream_.IsOp("]") || stream_.IsOp(","); };
  ExprPtr index;
  if (!stream_.IsOp(":")) {
    ASSIGN_OR_RETURN(index, Expression());
  }
  if (!stream_.SkipOp(":")) {
    node->children.push_back(std::move(index));
    if (!stream_.IsOp(",")) {
      RETURN_IF_ERROR(stream_.ExpectOp("]"));
      return Done(std::move(node));
    }
    // a[1, 2] is a[(1, 2)].
    ExprPtr tuple = Node(ExprKind::kTuple);
    tuple->children.push_back(std::move(node->children.back()));
    node->children.pop_back();
    while (!stream_.SkipOp("]")) {
      RETURN_IF_ERROR(stream_.ExpectOp(","));
      ASSIGN_OR_RETURN(ExprPtr item, Expression());
      tuple->children.push_back(std::move(item));
    }
    ASSIGN_OR_RETURN(tuple, Done(std::move(tuple)));
    node->children.push_back(std::move(tuple));
    return Done(std::move(node));
  }
  node->kind = ExprKind::kSlice;
  ExprPtr stop, step;
  if (!stream_.IsOp(":") && !ends()) {
    ASSIGN_OR_RETURN(stop, Expression());
  }
  if (stream_.SkipOp(":") && !ends()) {
    ASSIGN_OR_RETURN(step, Expression());
  }
  node->children.push_back(std::move(index));
  node->children.push_back(std::move(stop));
  node->children.push_back(std::move(step));
  RETURN_IF_ERROR(stream_.ExpectOp("]"));
  return Done(std::move(node));
}

absl::Status ExpressionParser::Argument(CallArguments* arguments) {
  const auto misplaced = [this] {
    return TemplateError(stream_.line(), "invalid syntax for function call expression");
  };
  if (stream_.SkipOp("*")) {
    if (arguments->star != nullptr || arguments->star_star != nullptr) return misplaced();
    ASSIGN_OR_RETURN(arguments->star, Expression());
    return absl::OkStatus();
  }
  if (stream_.SkipOp("**")) {
    if (arguments->star_star != nullptr) return misplaced();
    ASSIGN_OR_RETURN(arguments->star_star, Expression());
    return absl::OkStatus();
  }
  if (stream_.Is(TokenType::kName) && stream_.NextIsOp("=")) {
    if (arguments->star_star != nullptr) return misplaced();
    ASSIGN_OR_RETURN(std::string name, stream_.TakeName());
    for (const auto& [known, value] : arguments->keyword) {
      if (known == name) {
        return TemplateError(stream_.line(), absl::StrCat("keyword argument repeated: ", name));
      }
    }
    stream_.Skip();
    if (arguments->keyword.size() == kMaxNamedArguments) return TooManyArguments(stream_.line());
    ASSIGN_OR_RETURN(ExprPtr value, Expression());
    arguments->keyword.emplace_back(std::move(name), std::move(value));
    return absl::OkStatus();
  }
  if (arguments->star != nullptr || arguments->star_star != nullptr ||
      !arguments->keyword.empty()) {
    return misplaced();
  }
  ASSIGN_OR_RETURN(ExprPtr value, Expression());
  arguments->positional.push_back(std::move(value));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CallArguments>> ExpressionParser::Arguments() {
  auto arguments = std::make_unique<CallArguments>();
  RETURN_IF_ERROR(stream_.ExpectOp("("));
  for (bool first = true; !stream_.IsOp(")"); first = false) {
    if (!first) {
      RETURN_IF_ERROR(stream_.ExpectOp(","));
      if (stream_.IsOp(")")) break;
    }
    RETURN_IF_ERROR(Argument(arguments.get()));
  }
  stream_.Skip();
  return arguments;
}

absl::StatusOr<ExprPtr> ExpressionParser::Call(ExprPtr callee) {
  ExprPtr node = Node(ExprKind::kCall);
  node->children.push_back(std::move(callee));
  ASSIGN_OR_RETURN(node->arguments, Arguments());
  return Done(std::move(node));
}

absl::StatusOr<std::string> ExpressionParser::DottedName() {
  ASSIGN_OR_RETURN(std::string name, stream_.TakeName());
  while (stream_.SkipOp(".")) {
    ASSIGN_OR_RETURN(const std::string part, stream_.TakeName());
    absl::StrAppend(&name, ".", part);
  }
  return name;
}

absl::StatusOr<ExprPtr> ExpressionParser::Filter(ExprPtr object) {
  ExprPtr node = Node(ExprKind::kFilter);
  node->children.push_back(std::move(object));
  ASSIGN_OR_RETURN(node->name, DottedName());
  node->arguments = std::make_unique<CallArguments>();
  if (stream_.IsOp("(")) {
    ASSIGN_OR_RETURN(node->arguments, Arguments());
  }
  return Done(std::move(node));
}

absl::StatusOr<ExprPtr> ExpressionParser::BlockFilters(bool inline_start) {
  ExprPtr node;
  while (inline_start || stream_.IsOp("|")) {
    if (!inline_start) stream_.Skip();
    inline_start = false;
    ASSIGN_OR_RETURN(node, Filter(std::move(node)));
  }
  return node;
}

absl::StatusOr<ExprPtr> ExpressionParser::Test(ExprPtr object) {
  ExprPtr node = Node(ExprKind::kTest);
  stream_.Skip();
  const bool negated = stream_.SkipName("not");
  node->children.push_back(std::move(object));
  ASSIGN_OR_RETURN(node->name, DottedName());
  node->arguments = std::make_unique<CallArguments>();
  const bool has_operand = stream_.Is(TokenType::kName) || stream_.Is(TokenType::kString) ||
                           stream_.Is(TokenType::kInteger) || stream_.Is(TokenType::kFloat) ||
                           stream_.IsOp("[") || stream_.IsOp("{");
  if (stream_.IsOp("(")) {
    ASSIGN_OR_RETURN(node->arguments, Arguments());
  } else if (has_operand && !stream_.IsName("else") && !stream_.IsName("or") &&
             !stream_.IsName("and")) {
    if (stream_.IsName("is")) {
      return TemplateError(stream_.line(), "you cannot chain multiple tests with is");
    }
    RETURN_IF_ERROR(Enter());
    ASSIGN_OR_RETURN(ExprPtr operand, Primary(false));
    ASSIGN_OR_RETURN(operand, Postfix(std::move(operand)));
    Leave();
    node->arguments->positional.push_back(std::move(operand));
  }
  ASSIGN_OR_RETURN(node, Done(std::move(node)));
  if (!negated) return node;
  ExprPtr negation = Node(ExprKind::kNot, node->line);
  negation->children.push_back(std::move(node));
  return Done(std::move(negation));
}

absl::Status ExpressionParser::Signature(Function* function) {
  RETURN_IF_ERROR(stream_.ExpectOp("("));
  while (!stream_.IsOp(")")) {
    if (!function->parameters.empty()) RETURN_IF_ERROR(stream_.ExpectOp(","));
    const int line = stream_.line();
    ASSIGN_OR_RETURN(ExprPtr name, NameTarget());
    for (const std::string& known : function->parameters) {
      if (known == name->name) {
        return TemplateError(line, absl::StrCat("duplicate argument '", known, "'"));
      }
    }
    if (function->parameters.size() == kMaxNamedArguments) return TooManyArguments(line);
    function->parameters.push_back(name->name);
    if (stream_.SkipOp("=")) {
      ASSIGN_OR_RETURN(ExprPtr value, Expression());
      function->defaults.push_back(std::move(value));
    } else if (!function->defaults.empty()) {
      return TemplateError(line, "non-default argument follows default argument");
    }
  }
  stream_.Skip();
  return absl::OkStatus();
}

}  // namespace pergola::jinja
