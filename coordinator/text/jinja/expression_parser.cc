#include "coordinator/text/jinja/expression_parser.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/heap.h"

namespace pergola::jinja {
namespace {

int DepthOf(const ExprPtr& node) {
  return node == nullptr ? 0 : node->depth;
}

int DepthOf(const CallArguments& arguments) {
  int depth = std::max(DepthOf(arguments.star), DepthOf(arguments.star_star));
  for (const ExprPtr& node : arguments.positional) depth = std::max(depth, DepthOf(node));
  for (const auto& [name, node] : arguments.keyword) depth = std::max(depth, DepthOf(node));
  return depth;
}

}  // namespace

ExprPtr ExpressionParser::Node(ExprKind kind, int line) {
  auto node = std::make_unique<Expr>();
  node->kind = kind;
  node->line = line;
  return node;
}

absl::StatusOr<ExprPtr> ExpressionParser::Done(ExprPtr node) const {
  int depth = node->arguments == nullptr ? 0 : DepthOf(*node->arguments);
  for (const ExprPtr& child : node->children) depth = std::max(depth, DepthOf(child));
  node->depth = depth + 1;
  if (node->depth > limits_.nesting) {
    return absl::ResourceExhaustedError(absl::StrCat("line ", node->line,
                                                     ": the template exceeds its budget of ",
                                                     limits_.nesting, " nested expressions"));
  }
  return node;
}

absl::Status ExpressionParser::Enter() {
  if (++nesting_ > limits_.nesting) {
    return absl::ResourceExhaustedError(
        absl::StrCat("line ", stream_.line(), ": the template exceeds its budget of ",
                     limits_.nesting, " nested statements and expressions"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ExprPtr> ExpressionParser::Expression(bool with_condition) {
  RETURN_IF_ERROR(Enter());
  auto node = with_condition ? Condition() : Or();
  Leave();
  return node;
}

absl::StatusOr<ExprPtr> ExpressionParser::Condition() {
  ASSIGN_OR_RETURN(ExprPtr value, Or());
  while (stream_.IsName("if")) {
    ExprPtr node = Node(ExprKind::kCondition);
    stream_.Skip();
    ASSIGN_OR_RETURN(ExprPtr test, Or());
    ExprPtr other;
    if (stream_.SkipName("else")) {
      ASSIGN_OR_RETURN(other, Expression());
    }
    node->children.push_back(std::move(test));
    node->children.push_back(std::move(value));
    node->children.push_back(std::move(other));
    ASSIGN_OR_RETURN(value, Done(std::move(node)));
  }
  return value;
}

absl::StatusOr<ExprPtr> ExpressionParser::Logical(Parse operand, std::string_view word,
                                                  ExprKind kind) {
  ASSIGN_OR_RETURN(ExprPtr left, (this->*operand)());
  while (stream_.IsName(word)) {
    ExprPtr node = Node(kind);
    stream_.Skip();
    node->children.push_back(std::move(left));
    ASSIGN_OR_RETURN(ExprPtr right, (this->*operand)());
    node->children.push_back(std::move(right));
    ASSIGN_OR_RETURN(left, Done(std::move(node)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExpressionParser::Or() {
  return Logical(&ExpressionParser::And, "or", ExprKind::kOr);
}

absl::StatusOr<ExprPtr> ExpressionParser::And() {
  return Logical(&ExpressionParser::Not, "and", ExprKind::kAnd);
}

absl::StatusOr<ExprPtr> ExpressionParser::Not() {
  if (!stream_.IsName("not")) return Compare();
  ExprPtr node = Node(ExprKind::kNot);
  stream_.Skip();
  RETURN_IF_ERROR(Enter());
  ASSIGN_OR_RETURN(ExprPtr operand, Not());
  Leave();
  node->children.push_back(std::move(operand));
  return Done(std::move(node));
}

absl::StatusOr<bool> ExpressionParser::CompareOperator(Op* op) {
  static constexpr std::pair<std::string_view, Op> kOperators[] = {
      {"==", Op::kEqual},     {"!=", Op::kNotEqual}, {"<", Op::kLess},
      {"<=", Op::kLessEqual}, {">", Op::kGreater},   {">=", Op::kGreaterEqual},
  };
  for (const auto& [text, known] : kOperators) {
    if (stream_.SkipOp(text)) {
      *op = known;
      return true;
    }
  }
  if (stream_.SkipName("in")) {
    *op = Op::kIn;
    return true;
  }
  if (stream_.IsName("not") && stream_.NextIsName("in")) {
    stream_.Skip();
    stream_.Skip();
    *op = Op::kNotIn;
    return true;
  }
  return false;
}

absl::StatusOr<ExprPtr> ExpressionParser::Compare() {
  ExprPtr node = Node(ExprKind::kCompare);
  ASSIGN_OR_RETURN(ExprPtr left, Sum());
  for (;;) {
    Op op;
    ASSIGN_OR_RETURN(const bool found, CompareOperator(&op));
    if (!found) break;
    node->ops.push_back(op);
    if (left != nullptr) node->children.push_back(std::move(left));
    ASSIGN_OR_RETURN(ExprPtr right, Sum());
    node->children.push_back(std::move(right));
  }
  if (left != nullptr) return left;
  return Done(std::move(node));
}

absl::StatusOr<ExprPtr> ExpressionParser::Chain(
    Parse operand, const std::vector<std::pair<std::string_view, Op>>& operators) {
  ASSIGN_OR_RETURN(ExprPtr left, (this->*operand)());
  for (;;) {
    const auto found = std::find_if(operators.begin(), operators.end(), [this](const auto& entry) {
      return stream_.IsOp(entry.first);
    });
    if (found == operators.end()) return left;
    ExprPtr node = Node(ExprKind::kBinary);
    stream_.Skip();
    node->op = found->second;
    node->children.push_back(std::move(left));
    ASSIGN_OR_RETURN(ExprPtr right, (this->*operand)());
    node->children.push_back(std::move(right));
    ASSIGN_OR_RETURN(left, Done(std::move(node)));
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::Sum() {
  return Chain(&ExpressionParser::Concat, {{"+", Op::kAdd}, {"-", Op::kSubtract}});
}

absl::StatusOr<ExprPtr> ExpressionParser::Concat() {
  ExprPtr node = Node(ExprKind::kConcat);
  ASSIGN_OR_RETURN(ExprPtr first, Product());
  if (!stream_.IsOp("~")) return first;
  node->children.push_back(std::move(first));
  while (stream_.SkipOp("~")) {
    ASSIGN_OR_RETURN(ExprPtr part, Product());
    node->children.push_back(std::move(part));
  }
  return Done(std::move(node));
}

absl::StatusOr<ExprPtr> ExpressionParser::Product() {
  return Chain(
      &ExpressionParser::Power,
      {{"*", Op::kMultiply}, {"/", Op::kDivide}, {"//", Op::kFloorDivide}, {"%", Op::kModulo}});
}

absl::StatusOr<ExprPtr> ExpressionParser::Power() {
  return Chain(&ExpressionParser::FilteredUnary, {{"**", Op::kPower}});
}

absl::StatusOr<ExprPtr> ExpressionParser::Unary(bool with_filter) {
  ExprPtr node;
  if (stream_.IsOp("-") || stream_.IsOp("+")) {
    ExprPtr sign = Node(stream_.IsOp("-") ? ExprKind::kNegative : ExprKind::kPositive);
    stream_.Skip();
    RETURN_IF_ERROR(Enter());
    ASSIGN_OR_RETURN(ExprPtr operand, Unary(false));
    Leave();
    sign->children.push_back(std::move(operand));
    ASSIGN_OR_RETURN(node, Done(std::move(sign)));
  } else {
    ASSIGN_OR_RETURN(node, Primary(false));
  }
  ASSIGN_OR_RETURN(node, Postfix(std::move(node)));
  return with_filter ? FiltersAndTests(std::move(node)) : std::move(node);
}

absl::StatusOr<ExprPtr> ExpressionParser::NameOrConstant(bool with_namespace) {
  ExprPtr node = Node(ExprKind::kConst);
  ASSIGN_OR_RETURN(std::string name, stream_.TakeName());
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    node->value = Value::Bool(name == "true" || name == "True");
  } else if (name == "none" || name == "None") {
    node->value = Value::None();
  } else if (with_namespace && stream_.SkipOp(".")) {
    node->kind = ExprKind::kNamespaceRef;
    node->name = std::move(name);
    ASSIGN_OR_RETURN(node->attribute, stream_.TakeName());
  } else {
    node->kind = ExprKind::kName;
    node->name = std::move(name);
  }
  return node;
}

absl::StatusOr<ExprPtr> ExpressionParser::Primary(bool with_namespace) {
  switch (stream_.current().type) {
    case TokenType::kName:
      return NameOrConstant(with_namespace);
    case TokenType::kString: {
      ExprPtr node = Node(ExprKind::kConst);
      std::string text;
      for (; stream_.Is(TokenType::kString); stream_.Skip()) text += stream_.current().text;
      node->value = PlainString(std::move(text));
      return node;
    }
    case TokenType::kInteger:
    case TokenType::kFloat: {
      ExprPtr node = Node(ExprKind::kConst);
      node->value = stream_.current().number;
      stream_.Skip();
      return node;
    }
    default:
      if (stream_.IsOp("(")) return Parenthesis();
      if (stream_.IsOp("[")) return List();
      if (stream_.IsOp("{")) return Dict();
      return stream_.Unexpected("an expression");
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::Parenthesis() {
  stream_.Skip();
  RETURN_IF_ERROR(Enter());
  ASSIGN_OR_RETURN(ExprPtr node, TupleOf(false, true, false, {}, true));
  Leave();
  RETURN_IF_ERROR(stream_.ExpectOp(")"));
  return node;
}

absl::StatusOr<ExprPtr> ExpressionParser::Tuple(bool with_condition, std::string_view stop) {
  return TupleOf(false, with_condition, false, stop, false);
}

absl::StatusOr<ExprPtr> ExpressionParser::TupleOf(bool simplified, bool with_condition,
                                                  bool with_namespace, std::string_view stop,
                                                  bool in_parentheses) {
  ExprPtr tuple = Node(ExprKind::kTuple);
  bool has_comma = false;
  for (;;) {
    if (!tuple->children.empty()) RETURN_IF_ERROR(stream_.ExpectOp(","));
    if (stream_.Is(TokenType::kVariableEnd) || stream_.Is(TokenType::kBlockEnd) ||
        stream_.IsOp(")") || (!stop.empty() && stream_.IsName(stop))) {
      break;
    }
    ASSIGN_OR_RETURN(ExprPtr item,
                     simplified ? Primary(with_namespace) : Expression(with_condition));
    tuple->children.push_back(std::move(item));
    if (!stream_.IsOp(",")) break;
    has_comma = true;
  }
  if (!has_comma) {
    if (!tuple->children.empty()) return std::move(tuple->children[0]);
    if (!in_parentheses) return stream_.Unexpected("an expression");
  }
  return Done(std::move(tuple));
}

absl::Status ExpressionParser::CheckTarget(const Expr& target) const {
  if (target.kind == ExprKind::kTuple) {
    for (const ExprPtr& item : target.children) RETURN_IF_ERROR(CheckTarget(*item));
    return absl::OkStatus();
  }
  if (target.kind == ExprKind::kName || target.kind == ExprKind::kNamespaceRef) {
    return absl::OkStatus();
  }
  return TemplateError(target.line, "cannot assign to this expression");
}

absl::StatusOr<ExprPtr> ExpressionParser::Target(bool with_namespace, std::string_view stop) {
  ASSIGN_OR_RETURN(ExprPtr target, TupleOf(true, true, with_namespace, stop, false));
  RETURN_IF_ERROR(CheckTarget(*target));
  return target;
}

absl::StatusOr<ExprPtr> ExpressionParser::NameTarget() {
  ExprPtr node = Node(ExprKind::kName);
  ASSIGN_OR_RETURN(node->name, stream_.TakeName());
  for (const std::string_view word : {"true", "false", "none", "True", "False", "None"}) {
    if (node->name == word) {
      return TemplateError(node->line, absl::StrCat("cannot assign to '", node->name, "'"));
    }
  }
  return node;
}

absl::StatusOr<ExprPtr> ExpressionParser::List() {
  ExprPtr node = Node(ExprKind::kList);
  stream_.Skip();
  while (!stream_.IsOp("]")) {
    if (!node->children.empty()) RETURN_IF_ERROR(stream_.ExpectOp(","));
    if (stream_.IsOp("]")) break;
    ASSIGN_OR_RETURN(ExprPtr item, Expression());
    node->children.push_back(std::move(item));
  }
  stream_.Skip();
  return Done(std::move(node));
}

absl::StatusOr<ExprPtr> ExpressionParser::Dict() {
  ExprPtr node = Node(ExprKind::kDict);
  stream_.Skip();
  while (!stream_.IsOp("}")) {
    if (!node->children.empty()) RETURN_IF_ERROR(stream_.ExpectOp(","));
    if (stream_.IsOp("}")) break;
    ASSIGN_OR_RETURN(ExprPtr key, Expression());
    RETURN_IF_ERROR(stream_.ExpectOp(":"));
    ASSIGN_OR_RETURN(ExprPtr value, Expression());
    node->children.push_back(std::move(key));
    node->children.push_back(std::move(value));
  }
  stream_.Skip();
  return Done(std::move(node));
}

}  // namespace pergola::jinja
