// The template engine beyond what the goldens of jinja2 can show: limits, lines in errors, sharing
// between threads, and time.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "server/text/jinja/json_value.h"
#include "server/text/jinja/template.h"
#include "server/text/jinja/to_text.h"

namespace longhaul::jinja {
namespace {

absl::StatusOr<std::string> Render(std::string_view source, const Dict& variables = {},
                                   const Limits& limits = {}) {
  LH_ASSIGN_OR_RETURN(const auto parsed, Template::Parse(source));
  return parsed->Render(variables, 0, limits);
}

std::string ErrorOf(std::string_view source, const Limits& limits = {}) {
  const auto text = Render(source, {}, limits);
  EXPECT_FALSE(text.ok()) << source.substr(0, 200) << " gives " << text->substr(0, 200);
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument) << text.status();
  return std::string(text.status().message());
}

void ExpectError(std::string_view source, std::string_view part, const Limits& limits = {}) {
  const std::string message = ErrorOf(source, limits);
  EXPECT_NE(message.find(part), std::string::npos) << source.substr(0, 200) << "\n" << message;
}

TEST(JinjaTest, ErrorsNameTheLine) {
  ExpectError("a\n{{ b.c }}", "fails in line 2: 'b' is undefined");
  ExpectError("{% set x = 1 %}\n\n{{ 'a' +\n 1 }}",
              "line 3: '+' does not work between str and int");
  ExpectError("{{ raise_exception('Take\nturns') }}",
              "refuses this conversation (its line 1): Take\nturns");
  ExpectError("\n{% macro m(a) %}\n{{ a.b }}\n{% endmacro %}\n{{ m(none.x) }}",
              "line 3: 'none' has no attribute");
  // Cut off inside a tag.
  for (const char* source : {"{%raw", "{% raw -", "{%raw%}{%endraw", "{#", "{#-", "{%", "{{-"}) {
    ExpectError(source, "line 1");
  }
  ExpectError("{%- raw -%}\n\n{% endraw %}\n{{ x y }}", "line 4: expected '}}', got 'y'");
  ExpectError("{#\n\n#}{% for %}", "line 3");
  ExpectError("{{ '\n' }}{{ 1 | nope }}", "line 2: no filter named 'nope'");
  ExpectError("{% if x %}\n{% for y in z %}", "the template ends before 'endfor'");
  ExpectError("{% include 'x' %}", "the tag 'include' is not known");
  ExpectError("{% for x in y recursive %}{% endfor %}", "recursive loops are not supported");
  ExpectError("{{ 'x' | replace('a') }}", "'replace' needs the argument 'new'");
  ExpectError("{{ 'x' | trim(characters='a') }}", "'trim' has no argument 'characters'");
}

TEST(JinjaTest, ParserLimits) {
  ExpectError(std::string(kMaxTemplate_bytes + 1, 'x'), "at most 1048576 are accepted");
  ExpectError("a\xff", "not valid UTF-8 at byte 1");
  const auto repeat = [](std::string_view text, int n) {
    std::string result;
    for (int i = 0; i < n; ++i) result += text;
    return result;
  };
  for (const auto& [open, close] : {std::pair{"(", ")"},
                                    {"[", "]"},
                                    {"{1:", "}"},
                                    {"x(", ")"},
                                    {"x[", "]"},
                                    {"-", ""},
                                    {"not ", ""},
                                    {"1 if 1 else ", ""}}) {
    ExpectError("{{ " + repeat(open, 50000) + "1" + repeat(close, 50000) + " }}",
                "nested deeper than");
  }
  for (const std::string_view part : {"+1", ".a", "|abs", " and 1", " or 1", "**1", "()", "[0]"}) {
    ExpectError("{{ x" + repeat(part, 100000) + " }}", "nests deeper than");
  }
  ExpectError(repeat("{% if 1 %}", 50000), "nested deeper than");
  ExpectError("{% set " + repeat("(", 50000) + "x" + repeat(")", 50000) + " = 1 %}",
              "nested deeper than");
  // Wide is not deep.
  EXPECT_TRUE(Render("{{ 1" + repeat("~1", 50000) + " }}").ok());
  EXPECT_TRUE(Render("{{ [" + repeat("1,", 50000) + "] }}").ok());
  EXPECT_TRUE(Render("{% if 0 %}" + repeat("{% elif 0 %}", 20000) + "{% endif %}").ok());
}

TEST(JinjaTest, RenderingLimits) {
  Limits limits;
  limits.max_steps = 100000;
  limits.max_output_bytes = 1 << 20;
  ExpectError("{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}",
              "more than 100000 steps", limits);
  ExpectError("{{ range(100001) }}", "more than 100000 numbers", limits);
  ExpectError("{{ 'x' * 2000000 }}", "more than 1048576 bytes", limits);
  ExpectError("{{ 'x' * 9223372036854775807 }}", "more than 1048576 bytes", limits);
  ExpectError("{{ [1] * 9223372036854775807 }}", "steps", limits);
  ExpectError(
      "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}"
      "{% endfor %}",
      "more than 1048576 bytes", limits);
  ExpectError("{% for i in range(200) %}{{ 'x' * 10000 }}{% endfor %}", "1048576 bytes", limits);
  ExpectError("{{ 'abc' | replace('', 'x' * 900000) }}", "1048576 bytes", limits);
  ExpectError("{{ ('x' * 1000) | replace('x', 'y' * 2000) }}", "1048576 bytes", limits);
  ExpectError("{{ 'x'.rjust(9999999999) }}", "1048576 bytes", limits);
  ExpectError("{{ 'x' | center(9999999999) }}", "1048576 bytes", limits);
  ExpectError("{{ '%9999d' % 1 }}", "asks for more than 1000 characters", limits);
  ExpectError("{{ (['x' * 1000] * 5000) | join }}", "1048576 bytes", limits);
  // A list of itself twice, again and again: small in memory, endless to look at.
  const std::string twice =
      "{% set ns = namespace(x=[], y=[]) %}{% for i in range(60) %}"
      "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
  ExpectError(twice + "{{ ns.x == ns.y }}", "steps", limits);
  ExpectError(twice + "{{ ns.x }}", "bytes", limits);
  ExpectError(twice + "{{ ns.x | tojson }}", "steps", limits);
  ExpectError(
      "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}"
      "{% endfor %}",
      "nest deeper than 100 levels", limits);
  ExpectError("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deeply", limits);
  ExpectError(
      "{% macro m(n) %}{% for i in [1] %}{% if true %}{{ [m(n)] | join }}{% endif %}"
      "{% endfor %}{% endmacro %}{{ m(1) }}",
      "too deeply", limits);
  ExpectError("{{ 'a' | map(*(['map'] * 9000)) | list }}", "too deeply", {});
  ExpectError("{{ 9223372036854775807 + 1 }}", "64 bit", limits);
  ExpectError("{{ -9223372036854775807 - 2 }}", "64 bit", limits);
  ExpectError("{{ 3 ** 99 }}", "64 bit", limits);
  ExpectError("{{ (-9223372036854775807 - 1) // -1 }}", "64 bit", limits);
}

TEST(JinjaTest, ObjectsMayPointAtThemselves) {
  EXPECT_EQ(*Render("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns.me.me is defined }}"),
            "True");
  EXPECT_EQ(*Render("{% set ns = namespace() %}{% for i in [1, 2] %}{% macro m() %}{{ i }}"
                    "{% endmacro %}{% set ns.m = m %}{% endfor %}{{ ns.m() }}"),
            "2");
}

TEST(JinjaTest, JsonKeepsItsOrderAndBounds) {
  const auto value = ParseJsonValue(R"({"z": 1, "a": [true, null, 1.50, "\u00e9"], "z": 2})");
  ASSERT_TRUE(value.ok()) << value.status();
  std::string text;
  ASSERT_TRUE(AppendJson(*value, {}, 1000, &text).ok());
  EXPECT_EQ(text, R"({"z": 2, "a": [true, null, 1.5, "é"]})");
  EXPECT_FALSE(AppendJson(*value, {}, 10, &text).ok());
  EXPECT_FALSE(ParseJsonValue("{").ok());
  EXPECT_FALSE(ParseJsonValue("").ok());
  EXPECT_FALSE(ParseJsonValue("\"\xff\"").ok());
  EXPECT_FALSE(ParseJsonValue(std::string(1000, '[') + std::string(1000, ']')).ok());
  EXPECT_EQ(ParseJsonValue("18446744073709551615")->float_value(), 18446744073709551615.0);
  // Many keys are found by hash, and equal keys are one.
  std::string many = "{\"0\": 0";
  for (int i = 0; i < 100000; ++i) many += fmt::format(",\"{}\":{}", i % 60000, i);
  const auto large = ParseJsonValue(many + "}");
  ASSERT_TRUE(large.ok());
  EXPECT_EQ(large->dict().size(), 60000u);
  EXPECT_EQ(large->dict().Find("59999")->int_value(), 59999);
  EXPECT_EQ(large->dict().Find("1")->int_value(), 60001);
  EXPECT_EQ(large->dict().Find("x"), nullptr);
}

TEST(JinjaTest, ThreadsShareATemplate) {
  const auto parsed = *Template::Parse(
      "{% macro m(x) %}<{{ x }}>{% endmacro %}{% for i in range(n) %}{{ m(i) ~ 'abc'[1:] }}{% "
      "endfor %}");
  std::vector<std::thread> threads;
  std::vector<std::string> results(8);
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      Dict variables;
      variables.Set("n", Value::Int(100 + t % 2));
      for (int i = 0; i < 20; ++i) results[t] = *parsed->Render(variables, 0);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int t = 2; t < 8; ++t) EXPECT_EQ(results[t], results[t % 2]);
  EXPECT_NE(results[0], results[1]);
}

// A long message goes through the kinds of operations that templates use, a constant number of
// passes: the time is printed, the work is asserted in steps.
TEST(JinjaTest, LongMessagesAreLinear) {
  const auto parsed = *Template::Parse(
      "{% macro body(m) %}{{ m.content | trim }}{% endmacro %}"
      "{% for m in messages %}{% set content = m.content %}"
      "{% if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') "
      "%}"
      "{% endif %}{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}"
      "{{ body(m) }}{{ content | length }}{% endfor %}");
  const auto variables = [](size_t n_bytes) {
    Dict message, dict;
    message.Set("role", Value::String("user"));
    std::string text = " ";
    while (text.size() < n_bytes) text += "The quick brown fox, 日本語. ";
    message.Set("content", Value::String(text));
    dict.Set("messages", Value::List({Value::Of(std::move(message))}));
    return dict;
  };
  for (const size_t n_bytes : {size_t{500} << 10, size_t{5} << 20}) {
    const Dict dict = variables(n_bytes);
    const auto begin = std::chrono::steady_clock::now();
    Limits limits;
    limits.max_steps = static_cast<int64_t>(n_bytes / 4);
    const auto text = parsed->Render(dict, 0, limits);
    const double ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_GT(text->size(), 2 * n_bytes);
    std::printf("%zu bytes: %.1f ms\n", n_bytes, ms);
  }
}

}  // namespace
}  // namespace longhaul::jinja
