// A parsed template: statements and expressions. Names are already bound to slots (scope.h); see
// there for how Jinja scopes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using StmtPtr = std::unique_ptr<Stmt>;
using Block = std::vector<StmtPtr>;

enum class ExprKind : uint8_t {
  kConst,
  kName,
  kNamespaceRef,  // a target: name.attribute
  kTuple,
  kList,
  kDict,  // children: key, value, key, value, ...
  kAnd,
  kOr,
  kNot,
  kNegative,
  kPositive,
  kBinary,     // op: + - * / // % **
  kConcat,     // children, all as text
  kCompare,    // children and ops between them
  kCondition,  // children: test, value, other (may be null)
  kAttribute,  // children: object; name
  kItem,       // children: object, index
  kSlice,      // children: object, start, stop, step (each may be null)
  kCall,       // children: callee
  kFilter,     // children: the filtered (null: of a block's text); name
  kTest,       // children: the tested; name
};

enum class Op : uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

// Where a variable is: so many enclosing functions up, at this slot.
struct Place {
  int hops = 0;
  int slot = -1;
};

struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> keyword;
  ExprPtr star;       // *expression
  ExprPtr star_star;  // **expression
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  Op op = Op::kAdd;
  int line = 1;
  int depth = 1;  // of the tree below
  Value value;
  std::string name;       // of a name, an attribute, a filter, a test
  std::string attribute;  // of a namespace reference
  Place place;
  std::vector<ExprPtr> children;
  std::vector<Op> ops;
  std::unique_ptr<CallArguments> arguments;
};

// What entering a scope does to one of its variables.
struct Load {
  enum class From : uint8_t { kNothing, kContext, kOuter };
  int slot = 0;
  From from = From::kNothing;
  std::string name;  // in the context
  Place outer;
};

// A scope within a function; the variables end with it.
struct Scope {
  std::vector<Load> loads;
  std::vector<int> slots;  // all of the scope's own
};

// A macro's or a call block's function: its slots, the first ones its parameters.
struct Function {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  std::vector<int> parameter_slots;
  int slot_count = 0;
  // Slots of the special names, -1 if the body does not use them.
  int caller_slot = -1, kwargs_slot = -1, varargs_slot = -1;
  bool explicit_caller = false;
  Scope scope;
  Block body;
};

enum class StmtKind : uint8_t {
  kText,
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kCallBlock,  // and generation, where no expression is called
  kFilterBlock,
  kWith,
  kBreak,
  kContinue,
};

struct Branch {
  ExprPtr test;
  Block body;
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 1;
  std::string text;
  ExprPtr target;  // of set and for
  ExprPtr value;   // printed, assigned, iterated over, called, the filter of a block (may be null)
  ExprPtr test;    // of for (may be null)
  std::vector<Branch> branches;                   // of if
  std::vector<std::pair<ExprPtr, ExprPtr>> with;  // targets and values
  Block body;
  Block otherwise;  // else of if and for
  Scope scope;      // of the body
  Scope test_scope, otherwise_scope;
  ExprPtr test_target;  // for's target in the scope of its test
  Place loop_place;     // of the variable "loop"
  Place macro_place;
  std::unique_ptr<Function> function;
};

struct Template {
  Block body;
  Scope scope;
  int slot_count = 0;
};

}  // namespace pergola::jinja
