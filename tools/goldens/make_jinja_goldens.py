#!/usr/bin/env python3
"""Writes tests/golden/jinja.json: what jinja2, set up as transformers sets it up, makes of templates.

  conversations  by name: messages, tools and further variables
  templates      by name: source, and per conversation the rendered text, or null where Python raises
  snippets       small templates over one set of variables: source, and the text or null
The templates, in tools/goldens/jinja, are written for this test. They use the constructs of the chat templates that are published
with the model families, not their text. Needs jinja2 >= 3.1.6; deterministic.
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

SOURCES = pathlib.Path(__file__).resolve().parent / "jinja"
OUT = SOURCES.parents[2] / "tests/golden/jinja.json"
NOW = datetime.datetime(2024, 7, 26, 9, 5, 3)  # 1721984703 seconds, in UTC


class Generation(jinja2.ext.Extension):
    """{% generation %}: marks what the assistant said; the text is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def make_environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW.strftime(format)
    return env


ENV = make_environment()


def render(source, variables):
    """The text, or None when anything raises."""
    try:
        return ENV.from_string(source).render(**variables)
    except Exception:
        return None


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city — now.",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Name, e.g. \"Köln\""},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
        "days": {"type": ["integer", "null"], "minimum": 1, "maximum": 14.5}},
        "required": ["city"]}}}
CLOCK = {"type": "function", "function": {
    "name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments, id=None):
    return {"type": "function", **({"id": id} if id else {}), "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {
    "one": {"messages": [user("Hello, world")]},
    "system": {"messages": [{"role": "system", "content": "You are terse.\n"}, user("  What is 12 < 13 & 'x'?  "),
                            assistant(" Yes.\n"), user("日本語 and 😀?")]},
    "no_prompt": {"messages": [user("a"), assistant("b")], "add_generation_prompt": False},
    "bad_order": {"messages": [user("a"), user("b")]},
    "bad_role": {"messages": [{"role": "critic", "content": "c"}, user("a")]},
    "thinking": {"messages": [user("1+1"), assistant("<think>\nadd\n</think>\n\n2"), user("2+2"),
                              assistant("4", reasoning_content="\nadd again\n"), user("3+3")], "enable_thinking": False},
    "thinking_on": {"messages": [user("1+1"), assistant("<think>\nadd\n</think>\n\n2")], "enable_thinking": True},
    "tools": {"messages": [{"role": "system", "content": "Use tools."}, user("Weather in Köln?"),
                           assistant("", tool_calls=[call("get_weather", {"city": "Köln", "days": 2}, "abcdef123")]),
                           {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": "{\"t\": 21.5}"},
                           assistant("21.5 degrees."), user("And the time?")],
              "tools": [WEATHER, CLOCK]},
    "two_calls": {"messages": [user("Both?"),
                               assistant("Let me see.", tool_calls=[call("get_weather", {"city": "Rome", "unit": "kelvin"}, "aaaaaaaa1"),
                                                                    call("clock", {}, "aaaaaaaa2")]),
                               {"role": "tool", "tool_call_id": "aaaaaaaa1", "content": "290"},
                               {"role": "tool", "tool_call_id": "aaaaaaaa2", "content": "09:05"}],
                  "tools": [CLOCK, WEATHER]},
    "documents": {"messages": [user("Summarize.")], "documents": [{"title": "One", "text": "First\ntext"},
                                                                  {"title": "Two", "text": "Second", "year": 1999}],
                  "date_string": "01 Jan 2025"},
}

VARIABLES = {
    "s": "Hello Wörld", "e": "", "n": 42, "f": 2.5, "t": True, "no": False, "nothing": None,
    "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "d": {"b": 1, "a": "x", "C": None}, "deep": {"a": {"b": [10, 20]}},
    "users": [{"name": "Zoe", "age": 30, "ok": True}, {"name": "adam", "age": 4, "ok": False}, {"name": "Bob", "age": 30}],
    "lines": "one\ntwo\n\nthree", "quote": "it's \"q\" \\ \t é \u0007 \u200b 😀", "html": "<a href='x'>&\"</a>",
    "messages": [{"role": "user", "content": "x"}],
}

# Snippets of several lines; those of one line are in snippets.txt.
MULTI_LINE = ["  {% if true %}  \nx\n  {% endif %}  \ny\n", "  {%- if true -%}  \nx\n  {%- endif -%}  \ny\n",
              "  {% raw %}\n a {% endraw %}\nb\n", "a\n\n", "a\r\nb\rc\n", "\n\n{% if true %}\n\n{% endif %}\n\n",
              "{% if true %}\r\nx{% endif %}", "a{% set x = 1 -%}\n\n b", "{{ 1 -}}\n  x", "\t{%+ if true %}x{% endif %}\n",
              "{% for i in [1,2] %}\n  {{ i }}\n{% endfor %}\nend", "x {#- a\nb -#} y", "  {# c #}\nz", "{{ 'a\nb' }}",
              "{% set x %}\n  a\n{% endset %}{{ x }}|", "{{\n1\n}}", "{%\nif true\n%}x{% endif\n%}"]


def main():
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    templates = {}
    for path in sorted(SOURCES.glob("*.jinja")):
        name, source = path.stem, path.read_text()
        rendered = {}
        for chat, variables in CONVERSATIONS.items():
            defaults = {"tools": None, "documents": None, "add_generation_prompt": True, **tokens}
            rendered[chat] = render(source, {**defaults, **variables})
        assert any(text is not None for text in rendered.values()), name
        templates[name] = {"source": source, "rendered": rendered}
    sources = (SOURCES / "snippets.txt").read_text().splitlines()
    snippets = [[source, render(source, VARIABLES)] for source in sources + MULTI_LINE]
    golden = {"conversations": CONVERSATIONS, "tokens": tokens, "templates": templates,
              "variables": VARIABLES, "snippets": snippets}
    OUT.write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n")
    n_raise = sum(text is None for _, text in snippets)
    print(f"{OUT}: {len(templates)} templates, {len(snippets)} snippets ({n_raise} raise), {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
