// What Python's str knows of Unicode beyond utf8.h: case, categories, whitespace and line ends.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pergola::jinja {

// As str.isspace, strip and split see it.
bool IsPythonSpace(char32_t code_point);
bool IsPrintable(char32_t code_point);  // str.isprintable; others are escaped by repr
bool IsDecimal(char32_t code_point);    // str.isdecimal
bool IsDigit(char32_t code_point);      // str.isdigit
bool IsAlphabetic(char32_t code_point);
bool IsUpper(char32_t code_point);
bool IsLower(char32_t code_point);
bool IsTitle(char32_t code_point);

void AppendUpper(char32_t code_point, std::string* out);
void AppendTitle(char32_t code_point, std::string* out);
// The whole text, because a capital sigma at the end of a word becomes a final one.
std::string ToLower(std::string_view text);
std::string ToUpper(std::string_view text);

std::string_view StripLeft(std::string_view text);
std::string_view StripRight(std::string_view text);
// str.splitlines(keepends).
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);

// Where the code point number `index` starts, text.size() if there are not so many.
size_t OffsetOf(std::string_view text, int64_t index, bool is_ascii);

}  // namespace pergola::jinja
