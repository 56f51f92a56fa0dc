// Numbers on a command line, read and checked in one way and refused in one wording by every
// program: "--seed -1: must be 0 to 18446744073709551615". A target of its own (pergola_cli), so
// that pergola_base needs no CLI11.
#pragma once

#include <optional>
#include <string>
#include <type_traits>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "base/status.h"

namespace pergola {

template <typename T>
struct NumberLimits {
  T min;
  T max;
  bool above_min = false;  // min itself is refused
};

// "0 to 64", or "above 0 and at most 1".
template <typename T>
std::string LimitsText(const NumberLimits<T>& limits) {
  if (limits.above_min) return absl::StrCat("above ", limits.min, " and at most ", limits.max);
  return absl::StrCat(limits.min, " to ", limits.max);
}

// The number that the whole of `text` says, in decimal; none if it says no number or one beyond
// the limits. A NaN is beyond all limits.
template <typename T>
std::optional<T> ReadNumber(const std::string& text, const NumberLimits<T>& limits) {
  T number = 0;
  bool read = false;
  if constexpr (std::is_floating_point_v<T>) {
    static_assert(std::is_same_v<T, float>, "absl::SimpleAtod for others");
    read = absl::SimpleAtof(ToAbsl(text), &number);
  } else {
    read = absl::SimpleAtoi(ToAbsl(text), &number);
  }
  if (!read || !(number >= limits.min && number <= limits.max)) return std::nullopt;
  if (limits.above_min && number == limits.min) return std::nullopt;
  return number;
}

// CLI11 reads the text behind us: it must see what was checked, and its decimal form, because it
// takes 010 for eight.
template <typename T>
CLI::Validator NumberValidator(const std::string& name, const NumberLimits<T>& limits) {
  const auto check = [name, limits](std::string& text) {
    const std::optional<T> number = ReadNumber(text, limits);
    // CLI11 would put the name before a message that is returned or thrown as a ValidationError.
    if (!number) {
      throw CLI::ParseError(absl::StrCat(name, " ", text, ": must be ", LimitsText(limits)),
                            CLI::ExitCodes::ValidationError);
    }
    if constexpr (std::is_integral_v<T>) text = std::to_string(*number);
    return std::string();
  };
  return CLI::Validator(check, LimitsText(limits));
}

// The number in T or std::optional<T>.
template <typename T>
struct NumberOf {
  using Type = T;
};
template <typename T>
struct NumberOf<std::optional<T>> {
  using Type = T;
};

// Declares an option that takes one such number; an optional one stays unset if it is not given.
// `number` must outlive the parsing.
template <typename T>
CLI::Option* AddNumber(CLI::App& app, const std::string& name, T* number,
                       const NumberLimits<typename NumberOf<T>::Type>& limits,
                       const std::string& description) {
  return app.add_option(name, *number, description)->transform(NumberValidator(name, limits));
}

}  // namespace pergola
