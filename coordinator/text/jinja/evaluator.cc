// Statements.
#include "coordinator/text/jinja/evaluator.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/text_of.h"

namespace pergola::jinja {
namespace {

constexpr const char* kGlobals[] = {
    "range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"};

}  // namespace

absl::StatusOr<std::string> Evaluator::Run() {
  auto variables = std::make_shared<Variables>();
  variables->slots.resize(template_.slot_count);
  heap_.Own(variables.get(), variables->slots.size() * sizeof(Value));
  heap_.Keep(variables);
  variables_ = std::move(variables);
  EnterScope(template_.scope);
  absl::Status status = Execute(template_.body).status();
  if (status.ok()) status = heap_.Step(0);
  variables_.reset();
  if (status.ok()) return std::move(output_);
  return absl::Status(status.code(),
                      absl::StrCat("line ", line_, ": ", ToAbsl(ToStd(status.message()))));
}

Value Evaluator::FromContext(const std::string& name) {
  const Value* found = context_.Find(std::string_view(name));
  if (found != nullptr) return *found;
  for (const char* const global : kGlobals) {
    if (name == global) return heap_.Function(name);
  }
  return {};
}

Value& Evaluator::At(Place place) {
  Variables* variables = variables_.get();
  for (int i = 0; i < place.hops; ++i) variables = variables->outer.get();
  return variables->slots[place.slot];
}

// Counts the steps of leaving it, too. An exceeded budget is told by the next step.
void Evaluator::EnterScope(const Scope& scope) {
  (void)heap_.StepItems(scope.loads.size() + scope.slots.size());
  for (const Load& load : scope.loads) {
    Value& slot = variables_->slots[load.slot];
    switch (load.from) {
      case Load::From::kNothing:
        slot = Value();
        break;
      case Load::From::kContext:
        slot = FromContext(load.name);
        break;
      case Load::From::kOuter: {
        Value outer = At(load.outer);
        slot = std::move(outer);
        break;
      }
    }
  }
}

void Evaluator::LeaveScope(const Scope& scope) {
  for (const int slot : scope.slots) variables_->slots[slot] = Value();
}

absl::Status Evaluator::Put(std::string_view text) {
  RETURN_IF_ERROR(heap_.StepBytes(text.size()));
  if (out_ == &output_) {
    if (output_.size() + text.size() > heap_.limits().output_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the template exceeds its budget of ", heap_.limits().output_bytes, " bytes of output"));
    }
  } else {
    captured_bytes_ += text.size();
    RETURN_IF_ERROR(heap_.CheckBytes(captured_bytes_));
  }
  out_->append(text);
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::Capture(const Block& block, std::string* text) {
  std::string* const outer = std::exchange(out_, text);
  auto flow = Execute(block);
  out_ = outer;
  captured_bytes_ -= text->size();
  return flow;
}

absl::StatusOr<Evaluator::Flow> Evaluator::Execute(const Block& block) {
  RETURN_IF_ERROR(heap_.Enter());
  for (const StmtPtr& node : block) {
    line_ = node->line;
    ASSIGN_OR_RETURN(const Flow flow, Execute(*node));
    if (flow == Flow::kNormal) continue;
    heap_.Leave();
    return flow;
  }
  heap_.Leave();
  return Flow::kNormal;
}

absl::StatusOr<Evaluator::Flow> Evaluator::Execute(const Stmt& node) {
  switch (node.kind) {
    case StmtKind::kText:
      RETURN_IF_ERROR(Put(node.text));
      return Flow::kNormal;
    case StmtKind::kOutput: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*node.value));
      if (value.is_string()) {
        RETURN_IF_ERROR(Put(value.text()));
      } else {
        ASSIGN_OR_RETURN(const std::string text, TextOf(value, heap_));
        RETURN_IF_ERROR(Put(text));
      }
      return Flow::kNormal;
    }
    case StmtKind::kIf:
      return ExecuteIf(node);
    case StmtKind::kFor:
      return ExecuteFor(node);
    case StmtKind::kSet:
      RETURN_IF_ERROR(ExecuteSet(node));
      return Flow::kNormal;
    case StmtKind::kSetBlock:
    case StmtKind::kFilterBlock:
      return ExecuteCapture(node);
    case StmtKind::kMacro:
      RETURN_IF_ERROR(ExecuteMacro(node));
      return Flow::kNormal;
    case StmtKind::kCallBlock:
      RETURN_IF_ERROR(ExecuteCallBlock(node));
      return Flow::kNormal;
    case StmtKind::kWith:
      return ExecuteWith(node);
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecuteIf(const Stmt& node) {
  for (const Branch& branch : node.branches) {
    line_ = branch.test->line;
    ASSIGN_OR_RETURN(const Value test, Evaluate(*branch.test));
    if (IsTrue(test)) return Execute(branch.body);
  }
  return Execute(node.otherwise);
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunLoop(const Stmt& node,
                                                   const std::shared_ptr<LoopObject>& loop,
                                                   bool* has_run) {
  for (;;) {
    ASSIGN_OR_RETURN(Value item, NextOf(*loop));
    if (item.is_missing()) return Flow::kNormal;
    RETURN_IF_ERROR(Assign(*node.target, std::move(item)));
    At(node.loop_place) = Value(Kind::kLoop, loop);
    EnterScope(node.scope);
    ASSIGN_OR_RETURN(const Flow flow, Execute(node.body));
    line_ = node.line;
    if (flow == Flow::kBreak) return Flow::kNormal;
    // As in Jinja, only a body that ran to its end keeps the else from running.
    if (flow == Flow::kNormal) *has_run = true;
  }
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecuteFor(const Stmt& node) {
  ASSIGN_OR_RETURN(const Value iterated, Evaluate(*node.value));
  auto loop = std::make_shared<LoopObject>();
  ASSIGN_OR_RETURN(loop->items, ItemsOf(iterated, heap_));
  heap_.Own(loop.get(), loop->items.capacity() * sizeof(Value));
  if (node.test != nullptr) {
    loop->filter = &node;
    loop->home = variables_;
  }
  bool has_run = false;
  RETURN_IF_ERROR(RunLoop(node, loop, &has_run).status());
  LeaveScope(node.scope);
  if (node.test != nullptr) LeaveScope(node.test_scope);
  loop->position = loop->items.size();
  loop->filter = nullptr;
  loop->home.reset();
  if (loop.use_count() > 1) heap_.Keep(std::move(loop));
  if (has_run) return Flow::kNormal;
  EnterScope(node.otherwise_scope);
  ASSIGN_OR_RETURN(const Flow flow, Execute(node.otherwise));
  LeaveScope(node.otherwise_scope);
  return flow;
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecuteWith(const Stmt& node) {
  EnterScope(node.scope);
  for (const auto& [target, expression] : node.with) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression));
    RETURN_IF_ERROR(Assign(*target, std::move(value)));
  }
  ASSIGN_OR_RETURN(const Flow flow, Execute(node.body));
  LeaveScope(node.scope);
  return flow;
}

// set and filter blocks.
absl::StatusOr<Evaluator::Flow> Evaluator::ExecuteCapture(const Stmt& node) {
  EnterScope(node.scope);
  std::string text;
  ASSIGN_OR_RETURN(const Flow flow, Capture(node.body, &text));
  if (flow != Flow::kNormal) return flow;
  line_ = node.line;
  Value value = heap_.String(std::move(text));
  if (node.value != nullptr) {
    ASSIGN_OR_RETURN(value, EvaluateFilter(*node.value, std::move(value)));
  }
  LeaveScope(node.scope);
  if (node.kind == StmtKind::kSetBlock) {
    RETURN_IF_ERROR(Assign(*node.target, std::move(value)));
  } else {
    ASSIGN_OR_RETURN(const std::string shown, TextOf(value, heap_));
    RETURN_IF_ERROR(Put(shown));
  }
  return Flow::kNormal;
}

absl::Status Evaluator::CheckNamespaces(const Expr& target) {
  for (const ExprPtr& item : target.children) RETURN_IF_ERROR(CheckNamespaces(*item));
  if (target.kind != ExprKind::kNamespaceRef || At(target.place).kind() == Kind::kNamespace) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("cannot assign attribute on non-namespace object");
}

absl::Status Evaluator::ExecuteSet(const Stmt& node) {
  RETURN_IF_ERROR(CheckNamespaces(*node.target));
  ASSIGN_OR_RETURN(Value value, Evaluate(*node.value));
  return Assign(*node.target, std::move(value));
}

absl::Status Evaluator::Assign(const Expr& target, Value value) {
  if (target.kind == ExprKind::kName) {
    At(target.place) = std::move(value);
    return absl::OkStatus();
  }
  if (target.kind == ExprKind::kNamespaceRef) {
    const Value& space = At(target.place);
    if (space.kind() != Kind::kNamespace) {
      return absl::InvalidArgumentError("cannot assign attribute on non-namespace object");
    }
    if (target.attribute[0] == '_') {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot store the underscore-prefixed attribute '", target.attribute,
                       "' on a namespace"));
    }
    space.Mutable<NamespaceObject>().attributes->Set(heap_.String(target.attribute),
                                                     std::move(value));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::vector<Value> items, ItemsOf(value, heap_));
  if (items.size() != target.children.size()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot unpack ", items.size(), " values into ",
                                                   target.children.size(), " names"));
  }
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(Assign(*target.children[i], std::move(items[i])));
  }
  return absl::OkStatus();
}

absl::Status Evaluator::ExecuteMacro(const Stmt& node) {
  auto macro = std::make_shared<MacroObject>();
  heap_.Own(macro.get(), 0);
  macro->function = node.function.get();
  macro->outer = variables_;
  At(node.target->place) = Value(Kind::kMacro, std::move(macro));
  return absl::OkStatus();
}

absl::Status Evaluator::ExecuteCallBlock(const Stmt& node) {
  Value shown;
  if (node.value == nullptr) {  // generation
    ASSIGN_OR_RETURN(shown, RunFunction(*node.function, variables_, {}));
  } else {
    auto macro = std::make_shared<MacroObject>();
    heap_.Own(macro.get(), 0);
    macro->function = node.function.get();
    macro->outer = variables_;
    ASSIGN_OR_RETURN(shown, EvaluateCall(*node.value, Value(Kind::kMacro, std::move(macro))));
  }
  ASSIGN_OR_RETURN(const std::string text, TextOf(shown, heap_));
  return Put(text);
}

}  // namespace pergola::jinja
