#include "coordinator/text/jinja/frame.h"

namespace pergola::jinja {

void Frame::Merge(const std::vector<Names>& branches) {
  std::set<std::string> stored;
  for (const Names& branch : branches) {
    for (const std::string& name : branch.stored) {
      if (!IsStored(name)) stored.insert(name);
    }
  }
  for (const Names& branch : branches) {
    branches_.back().known.insert(branch.known.begin(), branch.known.end());
    branches_.back().stored.insert(branch.stored.begin(), branch.stored.end());
  }
  // A branch may not be taken: the name then means what it meant before.
  for (const std::string& name : stored) {
    const bool is_outer = outer_ != nullptr && outer_->Knows(name);
    for (auto it = branches_.rbegin(); it != branches_.rend(); ++it) {
      if (const auto found = it->known.find(name); found != it->known.end()) {
        found->second = is_outer ? Origin::kOuter : Origin::kContext;
        break;
      }
    }
  }
}

void Frame::Settle(Scope* scope) {
  for (const auto& [name, origin] : branches_.front().known) {
    const int slot = activation_->slot_count++;
    slots_[name] = slot;
    scope->slots.push_back(slot);
    switch (origin) {
      case Origin::kParameter:
        break;
      case Origin::kNothing:
        scope->loads.push_back({slot, Load::From::kNothing, name, {}});
        break;
      case Origin::kContext:
        scope->loads.push_back({slot, Load::From::kContext, name, {}});
        break;
      case Origin::kOuter:
        scope->loads.push_back(
            {slot, Load::From::kOuter, name, outer_->FindAt(name, activation_->depth)});
        break;
    }
  }
}

Place Frame::FindAt(const std::string& name, int depth) const {
  for (const Frame* frame = this; frame != nullptr; frame = frame->outer_) {
    const auto found = frame->slots_.find(name);
    if (found != frame->slots_.end()) return {depth - frame->activation_->depth, found->second};
  }
  return {};
}

Place Frame::Find(const std::string& name) const {
  return FindAt(name, activation_->depth);
}

}  // namespace pergola::jinja
