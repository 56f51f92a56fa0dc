#include "coordinator/text/jinja/scope.h"

#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/filters.h"
#include "coordinator/text/jinja/frame.h"
#include "coordinator/text/jinja/lexer.h"
#include "coordinator/text/jinja/value_tests.h"

namespace pergola::jinja {
namespace {

// Calls `visit` for every node below and including `node`, parts before wholes.
template <typename Node, typename Visit>
void Walk(Node& node, const Visit& visit) {
  for (auto& child : node.children) {
    if (child != nullptr) Walk(*child, visit);
  }
  if (node.arguments != nullptr) {
    for (auto& argument : node.arguments->positional) Walk(*argument, visit);
    for (auto& [name, argument] : node.arguments->keyword) Walk(*argument, visit);
    if (node.arguments->star != nullptr) Walk(*node.arguments->star, visit);
    if (node.arguments->star_star != nullptr) Walk(*node.arguments->star_star, visit);
  }
  visit(node);
}

// What Jinja's own pass over a scope sees: the names of its statements, but of inner scopes only
// what is evaluated outside of them.
class Analysis {
 public:
  explicit Analysis(Frame* frame) : frame_(*frame) {}

  void Read(const ExprPtr& node) {
    if (node == nullptr) return;
    Walk(*node, [this](const Expr& part) {
      if (part.kind == ExprKind::kName) frame_.Read(part.name);
    });
  }
  void Write(const ExprPtr& target) {
    Walk(*target, [this](const Expr& part) {
      if (part.kind == ExprKind::kName) frame_.Write(part.name);
      if (part.kind == ExprKind::kNamespaceRef) frame_.Read(part.name);
    });
  }
  void Parameters(const ExprPtr& target) {
    Walk(*target, [this](const Expr& part) {
      if (part.kind == ExprKind::kName) frame_.Parameter(part.name);
    });
  }
  void See(const Block& block) {
    for (const StmtPtr& node : block) See(*node);
  }

 private:
  Names BranchOf(const Block& block) {
    frame_.BeginBranch();
    See(block);
    return frame_.EndBranch();
  }
  void See(const Stmt& node);
  void SeeIf(const Stmt& node);

  Frame& frame_;
};

void Analysis::SeeIf(const Stmt& node) {
  Read(node.branches[0].test);
  std::vector<Names> branches;
  branches.push_back(BranchOf(node.branches[0].body));
  // All the others are one branch in which each is a condition of its own.
  frame_.BeginBranch();
  for (size_t i = 1; i < node.branches.size(); ++i) {
    Read(node.branches[i].test);
    frame_.Merge({BranchOf(node.branches[i].body)});
  }
  branches.push_back(frame_.EndBranch());
  branches.push_back(BranchOf(node.otherwise));
  frame_.Merge(branches);
}

void Analysis::See(const Stmt& node) {
  switch (node.kind) {
    case StmtKind::kOutput:
    case StmtKind::kFor:
    case StmtKind::kCallBlock:
    case StmtKind::kFilterBlock:
      return Read(node.value);
    case StmtKind::kIf:
      return SeeIf(node);
    case StmtKind::kSet:
      Read(node.value);
      return Write(node.target);
    case StmtKind::kSetBlock:
    case StmtKind::kMacro:
      return Write(node.target);
    case StmtKind::kWith:
      for (const auto& [target, value] : node.with) Read(value);
      return;
    case StmtKind::kText:
    case StmtKind::kBreak:
    case StmtKind::kContinue:
      return;
  }
}

// Whether `name` is read anywhere in the block, inner scopes and functions included.
class Mentions {
 public:
  explicit Mentions(std::string_view name) : name_(name) {}
  bool In(const Block& block) {
    for (const StmtPtr& node : block) {
      if (In(*node)) return true;
    }
    return false;
  }

 private:
  bool In(const ExprPtr& node) {
    bool found = false;
    if (node == nullptr) return false;
    Walk(*node, [this, &found](const Expr& part) {
      found = found || (part.kind == ExprKind::kName && part.name == name_);
    });
    return found;
  }
  bool In(const Stmt& node) {
    if (In(node.value) || In(node.test) || In(node.body) || In(node.otherwise)) return true;
    for (const auto& [target, value] : node.with) {
      if (In(value)) return true;
    }
    for (const Branch& branch : node.branches) {
      if (In(branch.test) || In(branch.body)) return true;
    }
    if (node.function == nullptr) return false;
    for (const ExprPtr& value : node.function->defaults) {
      if (In(value)) return true;
    }
    return In(node.function->body);
  }

  const std::string_view name_;
};

// Where a statement stands.
struct Around {
  bool guarded = false;    // by an `if` of the same scope
  bool breakable = false;  // in a loop of the same function
  bool in_loop = false;    // anywhere in a loop
};

class Binder {
 public:
  absl::Status Bind(Template* parsed);

 private:
  absl::Status BindBlock(Block& block, const Frame& frame, Around around);
  absl::Status BindStatement(Stmt& node, const Frame& frame, Around around);
  absl::Status BindIf(Stmt& node, const Frame& frame, Around around);
  absl::Status BindFor(Stmt& node, const Frame& frame, Around around);
  absl::Status BindBlockScope(Stmt& node, const Frame& frame, Around around);
  absl::Status BindFunction(Function& function, const Frame& frame, Around around);
  absl::Status BindExpr(ExprPtr& node, const Frame& frame, bool guarded);
  absl::Status BindExpr(Expr& node, const Frame& frame, bool guarded);
  absl::Status BindTarget(ExprPtr& node, const Frame& frame, Around around);
  static absl::Status CheckName(const Expr& node, bool guarded);

  int depth_ = 0;  // of functions
};

absl::Status Binder::CheckName(const Expr& node, bool guarded) {
  if (guarded) return absl::OkStatus();
  if (node.kind == ExprKind::kFilter && !IsFilter(node.name)) {
    return TemplateError(node.line, absl::StrCat("no filter named '", node.name, "'"));
  }
  if (node.kind == ExprKind::kTest && !IsTest(node.name)) {
    return TemplateError(node.line, absl::StrCat("no test named '", node.name, "'"));
  }
  return absl::OkStatus();
}

absl::Status Binder::BindExpr(ExprPtr& node, const Frame& frame, bool guarded) {
  return node == nullptr ? absl::OkStatus() : BindExpr(*node, frame, guarded);
}

absl::Status Binder::BindExpr(Expr& node, const Frame& frame, bool guarded) {
  guarded = guarded || node.kind == ExprKind::kCondition;
  RETURN_IF_ERROR(CheckName(node, guarded));
  if (node.kind == ExprKind::kName || node.kind == ExprKind::kNamespaceRef) {
    node.place = frame.Find(node.name);
  }
  for (ExprPtr& child : node.children) RETURN_IF_ERROR(BindExpr(child, frame, guarded));
  if (node.arguments == nullptr) return absl::OkStatus();
  for (ExprPtr& argument : node.arguments->positional) {
    RETURN_IF_ERROR(BindExpr(argument, frame, guarded));
  }
  for (auto& [name, argument] : node.arguments->keyword) {
    RETURN_IF_ERROR(BindExpr(argument, frame, guarded));
  }
  RETURN_IF_ERROR(BindExpr(node.arguments->star, frame, guarded));
  return BindExpr(node.arguments->star_star, frame, guarded);
}

absl::Status Binder::BindTarget(ExprPtr& node, const Frame& frame, Around around) {
  if (around.in_loop && node->kind == ExprKind::kName && node->name == "loop") {
    return TemplateError(node->line, "can't assign to the special loop variable");
  }
  for (ExprPtr& child : node->children) RETURN_IF_ERROR(BindTarget(child, frame, around));
  node->place = frame.Find(node->name);
  return absl::OkStatus();
}

absl::Status Binder::BindBlock(Block& block, const Frame& frame, Around around) {
  for (StmtPtr& node : block) RETURN_IF_ERROR(BindStatement(*node, frame, around));
  return absl::OkStatus();
}

absl::Status Binder::BindIf(Stmt& node, const Frame& frame, Around around) {
  around.guarded = true;
  for (Branch& branch : node.branches) {
    RETURN_IF_ERROR(BindExpr(branch.test, frame, true));
    RETURN_IF_ERROR(BindBlock(branch.body, frame, around));
  }
  return BindBlock(node.otherwise, frame, around);
}

ExprPtr CopyOfTarget(const Expr& target) {
  auto copy = std::make_unique<Expr>();
  copy->kind = target.kind;
  copy->line = target.line;
  copy->name = target.name;
  for (const ExprPtr& child : target.children) copy->children.push_back(CopyOfTarget(*child));
  return copy;
}

absl::Status Binder::BindFor(Stmt& node, const Frame& frame, Around around) {
  RETURN_IF_ERROR(BindExpr(node.value, frame, around.guarded));
  Around inside;
  inside.breakable = true;
  inside.in_loop = true;
  {
    Frame body(frame.activation(), &frame);
    body.Parameter("loop");
    Analysis analysis(&body);
    analysis.Parameters(node.target);
    analysis.See(node.body);
    body.Settle(&node.scope);
    RETURN_IF_ERROR(BindTarget(node.target, body, inside));
    node.loop_place = body.Find("loop");
    RETURN_IF_ERROR(BindBlock(node.body, body, inside));
  }
  if (node.test != nullptr) {
    Frame test(frame.activation(), &frame);
    Analysis analysis(&test);
    analysis.Parameters(node.target);
    analysis.Read(node.test);
    test.Settle(&node.test_scope);
    node.test_target = CopyOfTarget(*node.target);
    RETURN_IF_ERROR(BindTarget(node.test_target, test, inside));
    RETURN_IF_ERROR(BindExpr(node.test, test, false));
  }
  Frame otherwise(frame.activation(), &frame);
  Analysis(&otherwise).See(node.otherwise);
  otherwise.Settle(&node.otherwise_scope);
  inside.breakable = around.breakable;
  return BindBlock(node.otherwise, otherwise, inside);
}

// with, set and filter blocks.
absl::Status Binder::BindBlockScope(Stmt& node, const Frame& frame, Around around) {
  for (auto& [target, value] : node.with) {
    RETURN_IF_ERROR(BindExpr(value, frame, around.guarded));
  }
  Frame body(frame.activation(), &frame);
  Analysis analysis(&body);
  for (auto& [target, value] : node.with) analysis.Parameters(target);
  if (node.kind == StmtKind::kFilterBlock) analysis.Read(node.value);
  analysis.See(node.body);
  // Jinja forgets to look at the filters of a set block: names that nothing else mentions are no
  // variables there. Here they are the context's.
  if (node.kind == StmtKind::kSetBlock) analysis.Read(node.value);
  body.Settle(&node.scope);
  Around inside = around;
  inside.guarded = false;
  for (auto& [target, value] : node.with) RETURN_IF_ERROR(BindTarget(target, body, inside));
  RETURN_IF_ERROR(BindBlock(node.body, body, inside));
  if (node.kind == StmtKind::kSetBlock) RETURN_IF_ERROR(BindTarget(node.target, frame, around));
  return BindExpr(node.value, body, false);
}

absl::Status Binder::BindFunction(Function& function, const Frame& frame, Around around) {
  Activation activation;
  activation.depth = ++depth_;
  Frame body(&activation, &frame);
  for (const std::string& name : function.parameters) {
    body.Parameter(name);
    function.explicit_caller = function.explicit_caller || name == "caller";
  }
  const auto has_parameter = [&function](std::string_view name) {
    for (const std::string& known : function.parameters) {
      if (known == name) return true;
    }
    return false;
  };
  const std::pair<const char*, int*> special[] = {{"caller", &function.caller_slot},
                                                  {"kwargs", &function.kwargs_slot},
                                                  {"varargs", &function.varargs_slot}};
  bool uses[3];
  for (int i = 0; i < 3; ++i) {
    uses[i] = !has_parameter(special[i].first) && Mentions(special[i].first).In(function.body);
    if (uses[i]) body.Parameter(special[i].first);
  }
  Analysis analysis(&body);
  for (const ExprPtr& value : function.defaults) analysis.Read(value);
  analysis.See(function.body);
  body.Settle(&function.scope);
  for (const std::string& name : function.parameters) {
    function.parameter_slots.push_back(body.Find(name).slot);
  }
  for (int i = 0; i < 3; ++i) {
    if (uses[i]) *special[i].second = body.Find(special[i].first).slot;
  }
  for (ExprPtr& value : function.defaults) RETURN_IF_ERROR(BindExpr(value, body, false));
  Around inside;
  inside.in_loop = around.in_loop;
  RETURN_IF_ERROR(BindBlock(function.body, body, inside));
  function.slot_count = activation.slot_count;
  --depth_;
  return absl::OkStatus();
}

absl::Status Binder::BindStatement(Stmt& node, const Frame& frame, Around around) {
  switch (node.kind) {
    case StmtKind::kText:
      return absl::OkStatus();
    case StmtKind::kOutput:
      return BindExpr(node.value, frame, around.guarded);
    case StmtKind::kIf:
      return BindIf(node, frame, around);
    case StmtKind::kFor:
      return BindFor(node, frame, around);
    case StmtKind::kSet:
      RETURN_IF_ERROR(BindExpr(node.value, frame, around.guarded));
      return BindTarget(node.target, frame, around);
    case StmtKind::kMacro:
      RETURN_IF_ERROR(BindTarget(node.target, frame, around));
      return BindFunction(*node.function, frame, around);
    case StmtKind::kCallBlock:
      RETURN_IF_ERROR(BindExpr(node.value, frame, around.guarded));
      return BindFunction(*node.function, frame, around);
    case StmtKind::kSetBlock:
    case StmtKind::kFilterBlock:
    case StmtKind::kWith:
      return BindBlockScope(node, frame, around);
    case StmtKind::kBreak:
    case StmtKind::kContinue:
      if (around.breakable) return absl::OkStatus();
      return TemplateError(node.line, node.kind == StmtKind::kBreak ? "break outside of a loop"
                                                                    : "continue outside of a loop");
  }
  return absl::OkStatus();
}

absl::Status Binder::Bind(Template* parsed) {
  Activation activation;
  Frame root(&activation, nullptr);
  Analysis(&root).See(parsed->body);
  root.Settle(&parsed->scope);
  RETURN_IF_ERROR(BindBlock(parsed->body, root, {}));
  parsed->slot_count = activation.slot_count;
  return absl::OkStatus();
}

}  // namespace

absl::Status BindNames(Template* parsed) {
  return Binder().Bind(parsed);
}

}  // namespace pergola::jinja
