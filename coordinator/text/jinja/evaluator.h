// Executes a parsed template: one rendering, on one thread. Not for parsing (parser.h).
#pragma once

#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

// The variables of a function while it runs, and as long as a macro made in it lives.
struct Variables : Object {
  void Clear() override {
    slots.clear();
    outer.reset();
  }
  std::vector<Value> slots;
  std::shared_ptr<Variables> outer;  // of the function around
};

struct MacroObject : Object {
  const Function* function = nullptr;
  std::shared_ptr<Variables> outer;
};

// The variable `loop`.
struct LoopObject : Object {
  void Clear() override {
    items.clear();
    before = current = after = last_changed = Value();
  }
  std::vector<Value> items;
  size_t position = 0;  // of the next item
  int64_t index0 = -1;
  Value before, current, after;  // `after` was peeked at, or is missing
  Value last_changed;
  const Stmt* filter = nullptr;     // the loop, if it has a test
  std::shared_ptr<Variables> home;  // where its test is evaluated
};

class Evaluator {
 public:
  // Borrows all but the time. `context`: a dict of the template's variables.
  Evaluator(const Template& parsed, const DictObject& context, const std::tm& now, Heap* heap)
      : template_(parsed), context_(context), now_(now), heap_(*heap) {}

  // The text, or an error "line N: ...".
  absl::StatusOr<std::string> Run();

 private:
  enum class Flow : uint8_t { kNormal, kBreak, kContinue };

  // Statements (evaluator.cc).
  absl::StatusOr<Flow> Execute(const Block& block);
  absl::StatusOr<Flow> Execute(const Stmt& node);
  absl::StatusOr<Flow> ExecuteIf(const Stmt& node);
  absl::StatusOr<Flow> ExecuteFor(const Stmt& node);
  absl::StatusOr<Flow> RunLoop(const Stmt& node, const std::shared_ptr<LoopObject>& loop,
                               bool* has_run);
  absl::StatusOr<Flow> ExecuteWith(const Stmt& node);
  absl::StatusOr<Flow> ExecuteCapture(const Stmt& node);
  absl::Status ExecuteSet(const Stmt& node);
  absl::Status ExecuteMacro(const Stmt& node);
  absl::Status ExecuteCallBlock(const Stmt& node);
  absl::StatusOr<Flow> Capture(const Block& block, std::string* text);
  absl::Status Put(std::string_view text);
  absl::Status Assign(const Expr& target, Value value);
  absl::Status CheckNamespaces(const Expr& target);
  void EnterScope(const Scope& scope);
  void LeaveScope(const Scope& scope);
  Value& At(Place place);
  Value FromContext(const std::string& name);

  // Expressions (expressions.cc).
  absl::StatusOr<Value> Evaluate(const Expr& node);
  absl::StatusOr<Value> EvaluateInner(const Expr& node);
  absl::StatusOr<std::vector<Value>> EvaluateAll(const std::vector<ExprPtr>& nodes);
  absl::StatusOr<Value> EvaluateName(const Expr& node);
  absl::StatusOr<Value> EvaluateDict(const Expr& node);
  absl::StatusOr<Value> EvaluateLogical(const Expr& node);
  absl::StatusOr<Value> EvaluateConcat(const Expr& node);
  absl::StatusOr<Value> EvaluateCompare(const Expr& node);
  absl::StatusOr<Value> EvaluateCondition(const Expr& node);
  absl::StatusOr<Value> EvaluateSlice(const Expr& node);
  absl::StatusOr<Value> EvaluateCall(const Expr& node, Value caller);
  absl::StatusOr<Value> EvaluateFilter(const Expr& node, Value input);
  absl::StatusOr<Arguments> EvaluateArguments(const CallArguments& arguments);

  // Calls (calls.cc).
  absl::StatusOr<Value> Call(const Value& callee, const Arguments& arguments);
  absl::StatusOr<Value> CallMacro(const MacroObject& macro, Arguments arguments);
  absl::Status BindMacro(const Function& function, Arguments arguments);
  absl::StatusOr<Value> RunFunction(const Function& function, std::shared_ptr<Variables> outer,
                                    Arguments arguments);
  absl::StatusOr<Value> CallGlobal(const std::string& name, const Arguments& arguments);
  absl::StatusOr<Value> Range(const Arguments& arguments);
  absl::StatusOr<std::shared_ptr<DictObject>> DictOf(const Arguments& arguments);
  absl::StatusOr<Value> Namespace(const Arguments& arguments);
  absl::StatusOr<Value> TimeText(const Arguments& arguments);
  absl::StatusOr<Value> LoopAttribute(const Value& loop, const std::string& name);
  absl::StatusOr<Value> CallLoopMethod(LoopObject& loop, const std::string& name,
                                       const Arguments& arguments);
  absl::StatusOr<bool> Peek(LoopObject& loop);
  absl::StatusOr<Value> NextOf(LoopObject& loop);

  const Template& template_;
  const DictObject& context_;
  const std::tm now_;
  Heap& heap_;
  std::shared_ptr<Variables> variables_;
  std::string output_;
  std::string* out_ = &output_;
  uint64_t captured_bytes_ = 0;
  int line_ = 1;
};

}  // namespace pergola::jinja
