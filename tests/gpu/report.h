// What a run on a GPU finds, one line each, in the form that scripts/gpu_check gathers into its
// table: RESULT, part, what, result, goal, verdict, with tabs between.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>

namespace pergola {

enum class Verdict {
  kPass,     // correct
  kFail,     // wrong: gpu_check fails
  kReached,  // a speed at its goal
  kBelow,    // a speed below its goal
  kInfo,     // no goal
  kSkipped,  // could not be tried here; `result` says why
};

inline const char* VerdictName(Verdict verdict) {
  constexpr const char* kNames[] = {"pass", "FAIL", "reached", "below", "-", "skipped"};
  return kNames[static_cast<int>(verdict)];
}

// As printf; at most 255 characters.
__attribute__((format(printf, 1, 2))) inline std::string Text(const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return text;
}

// `goal` may be empty.
inline void Report(const char* part, const std::string& what, const std::string& result,
                   const std::string& goal, Verdict verdict) {
  std::printf("RESULT\t%s\t%s\t%s\t%s\t%s\n", part, what.c_str(), result.c_str(), goal.c_str(),
              VerdictName(verdict));
  std::fflush(stdout);
}

// A share of a roof, as "81 % of ...", against a goal in percent.
inline void ReportShare(const char* part, const std::string& what, double share, double goal,
                        const std::string& detail) {
  Report(part, what, Text("%.0f %%, %s", 100 * share, detail.c_str()),
         goal > 0 ? Text("%.0f %%", 100 * goal) : "",
         goal <= 0       ? Verdict::kInfo
         : share >= goal ? Verdict::kReached
                         : Verdict::kBelow);
}

}  // namespace pergola
