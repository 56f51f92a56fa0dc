// Budgets, errors and the API of templates; what they render is judged in template_golden_test.cc.
#include "coordinator/text/jinja/template.h"

#include <string>

#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/json_value.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

absl::StatusOr<std::string> Render(const std::string& source, const std::string& context = "{}",
                                   const JinjaLimits& limits = {}) {
  auto parsed = JinjaTemplate::Parse(source, limits);
  if (!parsed.ok()) return parsed.status();
  auto value = jinja::ParseJson(context, 1000);
  if (!value.ok()) return value.status();
  std::tm now = {};
  now.tm_year = 126;
  now.tm_mday = 1;
  return parsed->Render(*value, now);
}

std::string ErrorOf(const std::string& source, const std::string& context = "{}",
                    const JinjaLimits& limits = {}) {
  const auto text = Render(source, context, limits);
  return text.ok() ? "no error, but: " + *text : std::string(text.status().message());
}

void ExpectExhausted(const absl::StatusOr<std::string>& rendered, const std::string& budget) {
  ASSERT_FALSE(rendered.ok()) << rendered->substr(0, 200);
  EXPECT_EQ(rendered.status().code(), absl::StatusCode::kResourceExhausted) << rendered.status();
  EXPECT_THAT(std::string(rendered.status().message()), HasSubstr("budget of " + budget));
}

std::string Repeat(const std::string& part, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += part;
  return text;
}

TEST(JinjaTemplateTest, RendersManyTimes) {
  const auto parsed = JinjaTemplate::Parse("{% set ns = namespace(a=0) %}{{ ns.a }}{{ x }}");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  for (const char* context : {R"({"x": "a"})", R"({"x": "b"})"}) {
    const auto value = jinja::ParseJson(context, 10);
    ASSERT_TRUE(value.ok());
    EXPECT_EQ(*parsed->Render(*value, {}), std::string("0") + context[7]);
  }
}

TEST(JinjaTemplateTest, ErrorsNameTheLine) {
  EXPECT_THAT(ErrorOf("a\n{{ x.y }}"), StartsWith("line 2: 'x' is undefined"));
  EXPECT_THAT(ErrorOf("\n\n{% if %}"), StartsWith("line 3: "));
  EXPECT_THAT(ErrorOf("{% macro m() %}\n{{ 1 + 'a' }}{% endmacro %}\n\n{{ m() }}"),
              StartsWith("line 2: unsupported operand type(s) for +: 'int' and 'str'"));
  EXPECT_THAT(ErrorOf("{#\n\n#}\n{{- raise_exception('no\nway') }}"),
              StartsWith("line 4: raised: no\nway"));
}

TEST(JinjaTemplateTest, SyntaxErrorsSayWhatWasExpected) {
  EXPECT_EQ(ErrorOf("{% for x y %}"), "line 1: unexpected 'y', expected 'in'");
  EXPECT_EQ(ErrorOf("{{ a b }}"), "line 1: unexpected 'b', expected end of print statement");
  EXPECT_THAT(ErrorOf("{% if a %}\nb"), HasSubstr("the block 'if' of line 1 is not closed"));
  EXPECT_THAT(ErrorOf("{% for a in b %}{% endif %}"), HasSubstr("unknown tag 'endif'"));
  EXPECT_EQ(ErrorOf("{{ 'a }}"), "line 1: unexpected char ': the string has no end");
  EXPECT_EQ(ErrorOf("{{ a | nope }}"), "line 1: no filter named 'nope'");
}

TEST(JinjaTemplateTest, TagsThatLoadTemplatesAreRefusedByName) {
  for (const std::string tag : {"include 'a'", "import 'a' as b", "from 'a' import b",
                                "extends 'a'", "block b", "autoescape true"}) {
    EXPECT_THAT(ErrorOf("{% " + tag + " %}"), HasSubstr("is not supported")) << tag;
  }
  EXPECT_THAT(ErrorOf("{% for a in b recursive %}{% endfor %}"),
              HasSubstr("recursive loops are not supported"));
}

TEST(JinjaTemplateTest, InvalidUtf8IsRefused) {
  EXPECT_EQ(ErrorOf("ab\xFF"), "the template is not valid UTF-8 at byte 2");
}

TEST(JinjaTemplateTest, ContextThatIsNoDictIsRefused) {
  const auto parsed = JinjaTemplate::Parse("x");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->Render(jinja::PlainList({}), {}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(JinjaTemplateTest, ReadsNothingOfTheMachine) {
  EXPECT_EQ(*Render("{{ self }}{{ open }}{{ os }}{{ environment }}{{ lipsum }}{{ __import__ }}"),
            "");
  EXPECT_THAT(ErrorOf("{{ ''.__class__.__mro__ }}"), HasSubstr("is unsafe"));
}

TEST(JinjaBudgetTest, TemplateBytes) {
  JinjaLimits limits;
  limits.template_bytes = 10;
  EXPECT_TRUE(Render("0123456789", "{}", limits).ok());
  EXPECT_THAT(ErrorOf("0123456789a", "{}", limits), HasSubstr("has 11 bytes; its budget is 10"));
}

TEST(JinjaBudgetTest, NestingOfEveryConstructIsBounded) {
  const int deep = 50'000;
  for (const auto& [begin, end] :
       std::vector<std::pair<std::string, std::string>>{{"(", ")"},
                                                        {"[", "]"},
                                                        {"{1:", "}"},
                                                        {"-", ""},
                                                        {"not ", ""},
                                                        {"f(", ")"},
                                                        {"a[", "]"},
                                                        {"1 if 1 else ", ""},
                                                        {"1 is eq ", ""},
                                                        {"a|default(", ")"}}) {
    ExpectExhausted(Render("{{ " + Repeat(begin, deep) + "1" + Repeat(end, deep) + " }}"), "200");
  }
  for (const std::string chain :
       {" + 1", " and 1", ".a", "|upper", "[0]", "()", " ** 2", " if 1"}) {
    ExpectExhausted(Render("{{ 1" + Repeat(chain, deep) + " }}"), "200");
  }
  for (const std::string tag : {"if 1", "for x in y", "set x", "filter upper", "macro m()",
                                "call m()", "with", "generation"}) {
    ExpectExhausted(Render(Repeat("{% " + tag + " %}", 1000)), "200");
  }
}

TEST(JinjaBudgetTest, LongFlatTemplatesAreNoNesting) {
  EXPECT_TRUE(Render("{% if 0 %}" + Repeat("{% elif 0 %}", 20'000) + "{% endif %}").ok());
  EXPECT_TRUE(
      Render("{{ [" + Repeat("1,", 50'000) + "] | length ~ " + Repeat("1 ~ ", 1000) + "2 }}").ok());
}

TEST(JinjaBudgetTest, RecursionOfMacros) {
  ExpectExhausted(Render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "500");
  EXPECT_EQ(*Render("{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}"
                    "{{ m(50) | length }}"),
            "92");
}

TEST(JinjaBudgetTest, RecursionOfFilters) {
  ExpectExhausted(Render("{{ 'a' | map(" + Repeat("'map', ", 2000) + "'upper') | list }}"), "500");
}

TEST(JinjaBudgetTest, Steps) {
  JinjaLimits limits;
  limits.steps = 1000;
  ExpectExhausted(Render("{% for i in range(2000) %}{{ i }}{% endfor %}", "{}", limits), "1000");
  ExpectExhausted(Render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
                         "{% endfor %}"),
                  "20000000 steps");
}

TEST(JinjaBudgetTest, Memory) {
  JinjaLimits limits;
  limits.memory_bytes = 1 << 20;
  for (const std::string source :
       {"{{ 'x' * 10000000 }}", "{{ [0] * 10000000 }}", "{{ 'x'.center(10000000) }}",
        "{{ ('x' * 1000).replace('x', 'y' * 100000) }}", "{{ 'ab'.join('x' * 900000) }}",
        "{{ '%999999999d' % 1 }}", "{{ 'a' | indent(10000000) }}",
        "{{ '{:>900000000}'.format(1) }}", "{{ [[1]] | tojson(indent=10000000) }}",
        "{{ [1] | batch(10000000, 0) | list }}", "{{ '\t'.expandtabs(10000000) }}",
        "{{ [1] | slice(100000000) | list }}"}) {
    const auto text = Render(source, "{}", limits);
    EXPECT_FALSE(text.ok()) << source;
  }
  ExpectExhausted(Render("{% set ns = namespace(a='x') %}{% for i in range(30) %}"
                         "{% set ns.a = ns.a + ns.a %}{% endfor %}",
                         "{}", limits),
                  "1048576 bytes of memory");
  ExpectExhausted(Render("{% set ns = namespace(a=[]) %}{% for i in range(99999) %}"
                         "{% set ns.a = [ns.a, i] %}{% endfor %}"),
                  "100 nested values");
}

TEST(JinjaBudgetTest, MemoryThatIsGivenBackCountsNoMore) {
  JinjaLimits limits;
  limits.memory_bytes = 1 << 20;
  EXPECT_TRUE(
      Render("{% for i in range(500) %}{% set x = 'x' * 100000 %}{% endfor %}", "{}", limits).ok());
}

TEST(JinjaBudgetTest, Output) {
  JinjaLimits limits;
  limits.output_bytes = 5;
  EXPECT_EQ(*Render("12345", "{}", limits), "12345");
  ExpectExhausted(Render("123456", "{}", limits), "5 bytes of output");
}

TEST(JinjaBudgetTest, SharedValuesThatAreExponentiallyLarge) {
  const std::string doubled =
      "{% set ns = namespace(a=[], b=[]) %}{% for i in range(90) %}"
      "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}";
  for (const std::string use :
       {"{{ ns.a == ns.b }}", "{{ ns.a }}", "{{ ns.a | tojson }}", "{{ ns.a in [ns.b] }}",
        "{{ ns.a < ns.b }}", "{{ [ns.a, ns.b] | sort }}", "{{ ns.a | string | length }}"}) {
    const auto text = Render(doubled + use);
    ASSERT_FALSE(text.ok()) << use;
    EXPECT_EQ(text.status().code(), absl::StatusCode::kResourceExhausted) << use;
  }
}

// Each of these does little per evaluated node and much in between.
TEST(JinjaBudgetTest, WorkBetweenNodesCounts) {
  JinjaLimits limits;
  limits.steps = 1'000'000;
  const std::string loop = "{% for i in range(99999) %}{% for j in range(99999) %}";
  const std::string end = "{% endfor %}{% endfor %}";
  std::string names;
  for (int i = 0; i < 20'000; ++i) names += "{{ a" + std::to_string(i) + " }}";
  const std::string big = "{% set t = 'ab ' * 100000 %}{% set l = ('x', 'y') * 50000 %}";
  for (const std::string& source : {
           loop + "{% if 0 %}" + names + "{% endif %}" + end,
           "{% macro m() %}{% if 0 %}" + names + "{% endif %}{% endmacro %}" + loop + "{{ m() }}" +
               end,
           big + loop + "{% set x = t | int %}" + end,
           big + loop + "{% set x = t | upper %}" + end,
           big + loop + "{% set x = ''.split(t) %}" + end,
           big + loop + "{% set x = ''.startswith(l) %}" + end,
           big + "{% set x = (t | list) | map('replace', t, '') | list %}",
           "{% set x = range(99999) | map(attribute='a" + Repeat(".0", 90'000) +
               "', default='x') | list %}",
           loop + "{% set x = '{0" + Repeat("[0]", 90'000) + "}'.format('x') %}" + end,
       }) {
    ExpectExhausted(Render(source, "{}", limits), "1000000 steps");
  }
}

TEST(JinjaBudgetTest, KeysThatLookAlikeAreFoundFast) {
  EXPECT_EQ(*Render("{{ range(99999) | map('float') | map('string') | unique | list | length }}"
                    "{{ dict.fromkeys(('nan ' * 99999).split() | map('float')) | length }}"),
            "999991");
  // Numbers that end with the same 64 bits.
  std::string numbers = "18446744073709551616";
  for (int i = 1; i < 50'000; ++i) numbers += "," + std::to_string(i) + Repeat("0", 30);
  EXPECT_EQ(*Render("{{ x | unique | list | length }}", "{\"x\": [" + numbers + "]}"), "50000");
  EXPECT_EQ(*Render("{{ {2.0 ** 70: 'x'}[2 ** 70] }}{{ {1: 'y'}[1.0] }}{{ {true: 'z'}[1] }}"),
            "xyz");
}

TEST(JinjaBudgetTest, NamespacesThatHoldThemselvesEndCleanly) {
  EXPECT_EQ(*Render("{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a | length }}"), "1");
  ExpectExhausted(Render("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}"),
                  "100 nested values");
  EXPECT_EQ(*Render("{% macro m() %}{% macro n() %}x{% endmacro %}{{ n() }}{% endmacro %}"
                    "{% set ns = namespace(l=none) %}{% for i in range(3) %}{% set ns.l = loop %}"
                    "{% endfor %}{{ m() }}{{ ns.l.index }}"),
            "x3");
}

TEST(JinjaBudgetTest, DeepContextIsRefused) {
  const std::string deep = "{\"a\": " + Repeat("[", 150) + Repeat("]", 150) + "}";
  EXPECT_THAT(ErrorOf("x", deep), HasSubstr("its budget is 100"));
}

TEST(JinjaValueTest, IntegersBeyondTheirRangeAreErrors) {
  EXPECT_EQ(*Render("{{ 2 ** 100 }}"), "1267650600228229401496703205376");
  EXPECT_THAT(ErrorOf("{{ 2 ** 127 }}"), HasSubstr("does not fit in 128 bits"));
  EXPECT_THAT(ErrorOf("{{ (2 ** 126) * 4 }}"), HasSubstr("does not fit in 128 bits"));
  EXPECT_THAT(ErrorOf("{{ -(2 ** 126) - 2 ** 126 - 1 }}"), HasSubstr("does not fit"));
  EXPECT_THAT(ErrorOf("{{ 99999999999999999999 }}"), HasSubstr("does not fit in 64 bits"));
}

TEST(JinjaValueTest, BrokenEscapesAreErrors) {
  EXPECT_THAT(ErrorOf(R"({{ '\x4' }})"), HasSubstr("truncated \\x escape"));
  EXPECT_THAT(ErrorOf(R"({{ '\ud800' }})"), HasSubstr("is not a character"));
  EXPECT_THAT(ErrorOf(R"({{ '\N{DASH}' }})"), HasSubstr("not supported"));
}

TEST(JinjaValueTest, LateErrorsOfGeneratorsAppearWhenRead) {
  EXPECT_EQ(*Render("{% set g = [1, 'a'] | map('abs') %}{{ g | first }}"), "1");
  EXPECT_THAT(ErrorOf("{{ [1, 'a'] | map('abs') | list }}"), HasSubstr("bad operand type"));
}

TEST(JinjaValueTest, SearchingIsLinearInTheText) {
  // A naive search compares 2^37 bytes here.
  const std::string texts =
      "{% set half = 'a' * 300000 %}{% set text = half + half %}{% set wanted = half + 'b' %}"
      "{% set back = 'b' + half %}";
  EXPECT_EQ(*Render(texts + "{{ wanted in text }}{{ text.count(wanted) }}{{ text.rfind(back) }}"
                            "{{ text.split(wanted) | length }}{{ text.rsplit(back) | length }}"
                            "{{ text.replace(wanted, '') | length }}"),
            "False0-111600000");
  EXPECT_EQ(
      *Render("{{ 'abcabcab'.rfind('cab') }}{{ 'abab'.rfind('') }}{{ 'aXbXc'.rsplit('X', 1) }}"
              "{{ 'aaa'.rsplit('aa') }}{{ 'x'.rpartition('aa') }}"),
      "54['aXb', 'c']['a', '']('', '', 'x')");
}

TEST(JsonValueTest, ReadsAsPythonDoes) {
  const std::string text =
      R"({"b": 1, "a": [1.0, 18446744073709551616, -0.0], "b": null, "e": "é\n"})";
  EXPECT_EQ(*Render("{{ x | tojson }}", "{\"x\": " + text + "}"),
            R"({"b": null, "a": [1.0, 18446744073709551616, -0.0], "e": "é\n"})");
}

TEST(JsonValueTest, RefusesWithTheReason) {
  const auto error = [](const std::string& text) {
    return std::string(jinja::ParseJson(text, 3).status().message());
  };
  EXPECT_THAT(error("[1,"), HasSubstr("it is not JSON at byte"));
  EXPECT_THAT(error(""), HasSubstr("it is not JSON at byte"));
  EXPECT_THAT(error("[1] 2"), HasSubstr("it is not JSON at byte"));
  EXPECT_THAT(error("\"\xFF\""), HasSubstr("it is not JSON at byte"));
  EXPECT_THAT(error("\"\\ud800\""), HasSubstr("it is not JSON at byte"));
  EXPECT_EQ(error("[[[[]]]]"), "it nests deeper than 3");
  EXPECT_THAT(error(Repeat("9", 60)), HasSubstr("does not fit in 128 bits"));
  EXPECT_THAT(error("1e999"), HasSubstr("it is not JSON"));
}

}  // namespace
}  // namespace pergola
