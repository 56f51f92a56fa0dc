// One scope of names while it is analysed: what its statements read and assign, and the slots that
// gives. The rules are scope.h's.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "coordinator/text/jinja/ast.h"

namespace pergola::jinja {

// A function being bound: its slots are handed out one by one.
struct Activation {
  int depth = 0;
  int slot_count = 0;
};

// Where the value of a variable comes from when its scope is entered.
enum class Origin : uint8_t { kParameter, kNothing, kContext, kOuter };

// What the statements seen so far, or those of one branch of an `if`, say of names.
struct Names {
  std::map<std::string, Origin> known;
  std::set<std::string> stored;
};

// One scope while it is analysed and bound.
class Frame {
 public:
  Frame(Activation* activation, const Frame* outer) : activation_(activation), outer_(outer) {
    branches_.emplace_back();
  }

  void Parameter(const std::string& name) {
    branches_.front().known[name] = Origin::kParameter;
    branches_.front().stored.insert(name);
  }
  void Read(const std::string& name) {
    if (!Knows(name)) branches_.back().known[name] = Origin::kContext;
  }
  void Write(const std::string& name) {
    branches_.back().stored.insert(name);
    if (IsOwn(name)) return;
    const bool is_outer = outer_ != nullptr && outer_->Knows(name);
    branches_.back().known[name] = is_outer ? Origin::kOuter : Origin::kNothing;
  }
  void BeginBranch() { branches_.emplace_back(); }
  // Takes the branch off; the branches of one `if` are merged together.
  Names EndBranch() {
    Names names = std::move(branches_.back());
    branches_.pop_back();
    return names;
  }
  void Merge(const std::vector<Names>& branches);

  // Gives each name a slot, and the scope its loads. To be called when all statements were seen.
  void Settle(Scope* scope);
  bool Knows(const std::string& name) const {
    return IsOwn(name) || (outer_ != nullptr && outer_->Knows(name));
  }
  Place Find(const std::string& name) const;
  Activation* activation() const { return activation_; }

 private:
  bool IsOwn(const std::string& name) const {
    for (const Names& names : branches_) {
      if (names.known.count(name) > 0) return true;
    }
    return false;
  }
  bool IsStored(const std::string& name) const {
    for (const Names& names : branches_) {
      if (names.stored.count(name) > 0) return true;
    }
    return false;
  }
  Place FindAt(const std::string& name, int depth) const;

  Activation* activation_;
  const Frame* outer_;
  std::vector<Names> branches_;  // the first: the scope itself
  std::map<std::string, int> slots_;
};

}  // namespace pergola::jinja
