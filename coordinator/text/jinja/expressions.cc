// Expressions.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/evaluator.h"
#include "coordinator/text/jinja/filters.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/jinja/text_of.h"
#include "coordinator/text/jinja/value_tests.h"

namespace pergola::jinja {

absl::StatusOr<Value> Evaluator::Evaluate(const Expr& node) {
  if (node.kind == ExprKind::kConst) return node.value;
  RETURN_IF_ERROR(heap_.Enter());
  auto value = EvaluateInner(node);
  heap_.Leave();
  return value;
}

absl::StatusOr<Value> Evaluator::EvaluateInner(const Expr& node) {
  switch (node.kind) {
    case ExprKind::kConst:
    case ExprKind::kNamespaceRef:
      return node.value;
    case ExprKind::kName:
      return EvaluateName(node);
    case ExprKind::kTuple: {
      ASSIGN_OR_RETURN(auto items, EvaluateAll(node.children));
      return heap_.Tuple(std::move(items));
    }
    case ExprKind::kList: {
      ASSIGN_OR_RETURN(auto items, EvaluateAll(node.children));
      return heap_.List(std::move(items));
    }
    case ExprKind::kDict:
      return EvaluateDict(node);
    case ExprKind::kAnd:
    case ExprKind::kOr:
    case ExprKind::kNot:
      return EvaluateLogical(node);
    case ExprKind::kNegative:
    case ExprKind::kPositive: {
      ASSIGN_OR_RETURN(const Value operand, Evaluate(*node.children[0]));
      return Signed(node.kind == ExprKind::kNegative, operand);
    }
    case ExprKind::kBinary: {
      ASSIGN_OR_RETURN(const Value left, Evaluate(*node.children[0]));
      ASSIGN_OR_RETURN(const Value right, Evaluate(*node.children[1]));
      return Arithmetic(node.op, left, right, heap_);
    }
    case ExprKind::kConcat:
      return EvaluateConcat(node);
    case ExprKind::kCompare:
      return EvaluateCompare(node);
    case ExprKind::kCondition:
      return EvaluateCondition(node);
    case ExprKind::kAttribute: {
      ASSIGN_OR_RETURN(const Value object, Evaluate(*node.children[0]));
      line_ = node.line;
      if (object.kind() == Kind::kLoop) return LoopAttribute(object, node.name);
      return AttributeOf(object, node.name, heap_);
    }
    case ExprKind::kItem: {
      ASSIGN_OR_RETURN(const Value object, Evaluate(*node.children[0]));
      ASSIGN_OR_RETURN(const Value index, Evaluate(*node.children[1]));
      line_ = node.line;
      if (object.kind() == Kind::kLoop && index.is_string()) {
        return LoopAttribute(object, index.text());
      }
      return SubscriptOf(object, index, heap_);
    }
    case ExprKind::kSlice:
      return EvaluateSlice(node);
    case ExprKind::kCall:
      return EvaluateCall(node, Value());
    case ExprKind::kFilter: {
      ASSIGN_OR_RETURN(Value input, Evaluate(*node.children[0]));
      return EvaluateFilter(node, std::move(input));
    }
    case ExprKind::kTest: {
      ASSIGN_OR_RETURN(const Value tested, Evaluate(*node.children[0]));
      ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(*node.arguments));
      line_ = node.line;
      ASSIGN_OR_RETURN(const bool result, ApplyTest(node.name, tested, arguments, heap_));
      return Value::Bool(result);
    }
  }
  return Value::None();
}

absl::StatusOr<std::vector<Value>> Evaluator::EvaluateAll(const std::vector<ExprPtr>& nodes) {
  std::vector<Value> values;
  values.reserve(nodes.size());
  for (const ExprPtr& node : nodes) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*node));
    values.push_back(std::move(value));
  }
  return values;
}

absl::StatusOr<Value> Evaluator::EvaluateName(const Expr& node) {
  const Value& value = At(node.place);
  if (!value.is_missing()) return value;
  return heap_.Undefined(absl::StrCat("'", node.name, "' is undefined"));
}

absl::StatusOr<Value> Evaluator::EvaluateDict(const Expr& node) {
  auto dict = std::make_shared<DictObject>();
  for (size_t i = 0; i < node.children.size(); i += 2) {
    ASSIGN_OR_RETURN(Value key, Evaluate(*node.children[i]));
    ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[i + 1]));
    RETURN_IF_ERROR(heap_.Step(key.weight()));
    if (!IsHashable(key)) {
      return absl::InvalidArgumentError(absl::StrCat("unhashable type: '", TypeName(key), "'"));
    }
    dict->Set(std::move(key), std::move(value));
  }
  return heap_.Dict(std::move(dict));
}

absl::StatusOr<Value> Evaluator::EvaluateLogical(const Expr& node) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*node.children[0]));
  if (node.kind == ExprKind::kNot) return Value::Bool(!IsTrue(left));
  if (IsTrue(left) == (node.kind == ExprKind::kOr)) return left;
  return Evaluate(*node.children[1]);
}

absl::StatusOr<Value> Evaluator::EvaluateConcat(const Expr& node) {
  std::string text;
  for (const ExprPtr& part : node.children) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*part));
    RETURN_IF_ERROR(AppendText(value, heap_, &text));
  }
  return heap_.String(std::move(text));
}

absl::StatusOr<Value> Evaluator::EvaluateCompare(const Expr& node) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*node.children[0]));
  for (size_t i = 0; i < node.ops.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*node.children[i + 1]));
    ASSIGN_OR_RETURN(const bool holds, Comparison(node.ops[i], left, right, heap_));
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

absl::StatusOr<Value> Evaluator::EvaluateCondition(const Expr& node) {
  ASSIGN_OR_RETURN(const Value test, Evaluate(*node.children[0]));
  if (IsTrue(test)) return Evaluate(*node.children[1]);
  if (node.children[2] != nullptr) return Evaluate(*node.children[2]);
  return heap_.Undefined(absl::StrCat("the inline if-expression on line ", node.line,
                                      " evaluated to false and no else section was defined."));
}

absl::StatusOr<Value> Evaluator::EvaluateSlice(const Expr& node) {
  ASSIGN_OR_RETURN(const Value object, Evaluate(*node.children[0]));
  Value bounds[3];
  for (int i = 0; i < 3; ++i) {
    if (node.children[i + 1] == nullptr) continue;
    ASSIGN_OR_RETURN(bounds[i], Evaluate(*node.children[i + 1]));
  }
  line_ = node.line;
  if (object.is_undefined()) return absl::InvalidArgumentError(object.text());
  if (!object.is_sequence() && !object.is_string() && object.kind() != Kind::kRange) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", TypeName(object), "' object cannot be sliced"));
  }
  ASSIGN_OR_RETURN(const SliceIndices indices,
                   ResolveSlice(bounds[0], bounds[1], bounds[2], *LengthOf(object)));
  return SliceOf(object, indices, heap_);
}

absl::StatusOr<Arguments> Evaluator::EvaluateArguments(const CallArguments& arguments) {
  Arguments values;
  ASSIGN_OR_RETURN(values.positional, EvaluateAll(arguments.positional));
  if (arguments.star != nullptr) {
    ASSIGN_OR_RETURN(const Value star, Evaluate(*arguments.star));
    ASSIGN_OR_RETURN(const auto items, ItemsOf(star, heap_));
    values.positional.insert(values.positional.end(), items.begin(), items.end());
  }
  for (const auto& [name, node] : arguments.keyword) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*node));
    values.keyword.emplace_back(name, std::move(value));
  }
  if (arguments.star_star == nullptr) return values;
  ASSIGN_OR_RETURN(const Value mapping, Evaluate(*arguments.star_star));
  if (!mapping.is_dict()) {
    return absl::InvalidArgumentError(
        absl::StrCat("argument after ** must be a mapping, not ", TypeName(mapping)));
  }
  for (const auto& [key, value] : mapping.dict().entries()) {
    if (!key.is_string()) return absl::InvalidArgumentError("keywords must be strings");
    for (const auto& [name, known] : values.keyword) {
      if (name == key.text()) {
        return absl::InvalidArgumentError(
            absl::StrCat("got multiple values for keyword argument '", name, "'"));
      }
    }
    RETURN_IF_ERROR(heap_.StepItems(values.keyword.size()));
    values.keyword.emplace_back(key.text(), value);
  }
  return values;
}

absl::StatusOr<Value> Evaluator::EvaluateCall(const Expr& node, Value caller) {
  ASSIGN_OR_RETURN(const Value callee, Evaluate(*node.children[0]));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(*node.arguments));
  if (!caller.is_missing()) arguments.keyword.emplace_back("caller", std::move(caller));
  line_ = node.line;
  return Call(callee, arguments);
}

absl::StatusOr<Value> Evaluator::EvaluateFilter(const Expr& node, Value input) {
  // A block's filters: the first one filters the text.
  if (node.children[0] != nullptr && node.children[0]->kind == ExprKind::kFilter &&
      node.children[0]->children[0] == nullptr) {
    ASSIGN_OR_RETURN(input, EvaluateFilter(*node.children[0], std::move(input)));
  }
  ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(*node.arguments));
  line_ = node.line;
  return ApplyFilter(node.name, input, arguments, heap_);
}

}  // namespace pergola::jinja
