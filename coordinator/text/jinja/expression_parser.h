// Expressions of Jinja, by its precedences: condition, or, and, not, comparison, + and -, ~, * and
// its kin, **, unary, then calls, attributes, filters and tests.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/limits.h"
#include "coordinator/text/jinja/token_stream.h"

namespace pergola::jinja {

class ExpressionParser {
 public:
  // Borrows the stream.
  ExpressionParser(TokenStream* stream, const JinjaLimits& limits)
      : stream_(*stream), limits_(limits) {}

  absl::StatusOr<ExprPtr> Expression(bool with_condition = true);
  // Expressions parted by commas are a tuple. `stop`: a name that ends it, or empty.
  absl::StatusOr<ExprPtr> Tuple(bool with_condition = true, std::string_view stop = {});
  // What can be assigned to: names, tuples of them, and attributes of namespaces.
  absl::StatusOr<ExprPtr> Target(bool with_namespace, std::string_view stop = {});
  absl::StatusOr<ExprPtr> NameTarget();
  // "|filter|filter" on nothing, for blocks; null if there is none. `inline_start`: the first
  // filter has no bar.
  absl::StatusOr<ExprPtr> BlockFilters(bool inline_start);
  absl::Status Signature(Function* function);

  // Counts nested statements and expressions together.
  absl::Status Enter();
  void Leave() { --nesting_; }

 private:
  using Parse = absl::StatusOr<ExprPtr> (ExpressionParser::*)();

  absl::StatusOr<ExprPtr> Condition();
  absl::StatusOr<ExprPtr> Or();
  absl::StatusOr<ExprPtr> And();
  absl::StatusOr<ExprPtr> Not();
  absl::StatusOr<ExprPtr> Compare();
  absl::StatusOr<ExprPtr> Sum();
  absl::StatusOr<ExprPtr> Concat();
  absl::StatusOr<ExprPtr> Product();
  absl::StatusOr<ExprPtr> Power();
  absl::StatusOr<ExprPtr> FilteredUnary() { return Unary(true); }
  absl::StatusOr<ExprPtr> Unary(bool with_filter);
  absl::StatusOr<ExprPtr> Primary(bool with_namespace);
  absl::StatusOr<ExprPtr> NameOrConstant(bool with_namespace);
  absl::StatusOr<ExprPtr> Parenthesis();
  absl::StatusOr<ExprPtr> List();
  absl::StatusOr<ExprPtr> Dict();
  absl::StatusOr<ExprPtr> Postfix(ExprPtr object);
  absl::StatusOr<ExprPtr> FiltersAndTests(ExprPtr object);
  absl::StatusOr<ExprPtr> Attribute(ExprPtr object);
  absl::StatusOr<ExprPtr> Subscript(ExprPtr object);
  absl::StatusOr<ExprPtr> Call(ExprPtr callee);
  absl::StatusOr<ExprPtr> Filter(ExprPtr object);
  absl::StatusOr<ExprPtr> Test(ExprPtr object);
  absl::StatusOr<std::unique_ptr<CallArguments>> Arguments();
  absl::Status Argument(CallArguments* arguments);
  absl::StatusOr<ExprPtr> TupleOf(bool simplified, bool with_condition, bool with_namespace,
                                  std::string_view stop, bool in_parentheses);
  absl::StatusOr<ExprPtr> Chain(Parse operand,
                                const std::vector<std::pair<std::string_view, Op>>& operators);
  absl::StatusOr<ExprPtr> Logical(Parse operand, std::string_view word, ExprKind kind);
  absl::StatusOr<bool> CompareOperator(Op* op);
  absl::StatusOr<std::string> DottedName();
  absl::Status CheckTarget(const Expr& target) const;
  // The finished node, unless its tree is too deep.
  absl::StatusOr<ExprPtr> Done(ExprPtr node) const;
  ExprPtr Node(ExprKind kind) const { return Node(kind, stream_.line()); }
  static ExprPtr Node(ExprKind kind, int line);

  TokenStream& stream_;
  const JinjaLimits& limits_;
  int nesting_ = 0;
};

}  // namespace pergola::jinja
