#!/usr/bin/env python3
"""Writes tests/golden/jinja.json: what jinja2, set up as transformers sets it up, makes of templates.

  conversations  by name: messages, tools and further variables
  templates      by name: source, and per conversation the rendered text, or null where Python raises
  snippets       small templates over one set of variables: source, and the text or null
The templates are written for this test. They use the constructs of the chat templates that are published
with the model families, not their text. Needs jinja2 >= 3.1.6; deterministic.
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/jinja.json"
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

TEMPLATES = {}
TEMPLATES["chatml"] = """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
"""
TEMPLATES["llama2"] = """{%- if messages[0]['role'] == 'system' -%}
    {%- set turns = messages[1:] -%}{%- set system = messages[0]['content'] -%}
{%- else -%}
    {%- set turns = messages -%}{%- set system = false -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must take turns: user, assistant, user, ...') }}
    {%- endif -%}
    {%- if loop.index0 == 0 and system != false -%}
        {%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] -%}
    {%- else -%}
        {%- set content = message['content'] -%}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- ' ' + content.strip() + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
TEMPLATES["llama3"] = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
TEMPLATES["llama31"] = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message is taken out, so that the rest can be gone over. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Knowledge until: December 2023\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "Functions you may call:" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("There is no first user message to put the tools into") }}
{%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- 'Answer as {"name": function, "parameters": dictionary}. ' }}
    {{- "No variables.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One call at a time, please") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
TEMPLATES["mistral"] = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{#- Roles must take turns, without the messages of tools. #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles take turns: user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
            {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Ids of calls have 9 characters") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles, after an initial system message!") }}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES["qwen2"] = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
TEMPLATES["qwen25"] = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You help.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures within <tools></tools>:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\nReturn <tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TEMPLATES["qwen3"] = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" ~ (tool | tojson) }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
TEMPLATES["glm4"] = """[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>
Functions:{% set tools = item['tools'] %}{% for tool in tools %}{% if tool['type'] == 'function' %}

## {{ tool['function']['name'] }}

{{ tool['function'] | tojson(indent=4) }}
{% endif %}{% endfor %}{% endif %}{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}
{{ item['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
TEMPLATES["chatglm3"] = """{% for message in messages %}{% if loop.first %}[gMASK]sop<|{{ message['role'] }}|>
 {{ message['content'] }}{% else %}<|{{ message['role'] }}|>
 {{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
TEMPLATES["phi3"] = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""
TEMPLATES["phi4_like"] = """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""
TEMPLATES["yi"] = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}{% if system_message is defined %}{{ system_message }}{% endif %}{% for message in messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n<|im_start|>assistant\\n' }}{% elif message['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"""
TEMPLATES["internlm2"] = """{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TEMPLATES["vicuna"] = """{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] | trim + ' ' %}{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}{{ bos_token + system_message }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] | trim + ' ' }}{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
TEMPLATES["deepseek"] = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}{{'<|Assistant|><|calls|><|call|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments']|tojson + '\\n' + '```' + '<|/call|>'}}{%- set ns.is_first = true -%}{%- else %}{{'\\n' + '<|call|>' + tool['type'] + '<|sep|>' + tool['function']['name'] + '<|/call|>'}}{{'<|/calls|><|eos|>'}}{%- endif %}{%- endfor %}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{%- if ns.is_tool %}{{'<|/outputs|>' + message['content'] + '<|eos|>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<|Assistant|>' + content + '<|eos|>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<|outputs|><|output|>' + message['content'] + '<|/output|>'}}{%- set ns.is_output_first = false %}{%- else %}{{'\\n<|output|>' + message['content'] + '<|/output|>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<|/outputs|>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}"""
TEMPLATES["gemma"] = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
TEMPLATES["command_r"] = """{{ bos_token }}{%- macro json_to_python_type(param_name, spec, is_first=true) %}
{%- set types = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
{%- if spec.type is string and types[spec.type] is defined -%}
    {{ types[spec.type] }}
{%- elif spec.type == "array" -%}
    {{ "List[" + json_to_python_type(param_name, spec["items"], false) + "]" }}
{%- elif spec.type == "object" -%}
    {{- "Dict" }}
{%- elif spec.type is string -%}
    {{ spec.type }}
{%- elif spec.type is iterable -%}
    {{- "Union[" -}}
    {%- for t in spec.type -%}
        {{- json_to_python_type(param_name, {"type": t}) }}{{ "," if not loop.last else "" -}}
    {%- endfor -%}
    {{- "]" -}}
{%- else -%}
    {{- "Any" }}
{%- endif -%}
{%- if not is_first %}!{% endif %}
{%- endmacro -%}
{%- macro section(title, level=1) -%}
{{ '#' * level }} {{ title }}
{{ caller() if caller is defined else '' }}
{%- endmacro -%}
{% macro document_turn(documents) -%}
<results>
{% for doc in documents %}
Document: {{ loop.index0 }}
{% for key, value in doc|items %}
{{ key }}: {{ value }}
{% endfor %}
{% if not loop.last %}

{% endif -%}
{% endfor %}
</results>
{%- endmacro %}
{% call section('Preamble', level=2) %}
Today is {{ strftime_now('%A, %Y-%m-%d %H:%M:%S') }}.
{% endcall %}
{% if tools %}
{%- for tool in tools %}

def {{ tool.function.name }}(
{%- for name, spec in tool.function.parameters.properties | dictsort %}
{{ name }}: {{ json_to_python_type(name, spec) }}
{%- if name not in (tool.function.parameters.required or []) %} = {{ spec.default | default(none) | tojson }}{% endif %}
{{- ", " if not loop.last }}
{%- endfor %}) -> Dict:
    \"\"\"{{ tool.function.description | default("-", true) | capitalize }}\"\"\"
{%- endfor %}
{% endif %}
{% if documents %}{{ document_turn(documents) }}{% endif %}
{% for message in messages if message.role != 'tool' %}
{{ '<|' ~ message.role | upper ~ '_TOKEN|>' ~ message.content }}
{% endfor %}
"""
TEMPLATES["constructs"] = """
{#- A bit of everything: loop controls, else, recursion of macros, blocks of set and filter. -#}
{% macro tree(n) %}{% if n > 0 %}({{ tree(n - 1) }}{{ n }}){% endif %}{% endmacro %}
{% macro all(a, b='B', c=a) %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs|dictsort }}{% endmacro %}
{{ tree(3) }} {{ all(1) }} {{ all(1, 2, 3, 4, 5, z=6, y='7') }} {{ all(b=1, a='x') }}
{% for m in messages %}
  {% if m.role == 'system' %}{% continue %}{% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
  {{ loop.index }}/{{ loop.length }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.cycle('odd', 'even') }} {{ loop.changed(m.role) }} {{ loop.previtem.role if loop.previtem is defined }} {{ loop.nextitem.role if loop.nextitem is defined else 'end' }}
{% else %}
nothing
{% endfor %}
{% for x in [] %}{{ x }}{% else %}empty{% endfor %}
{% set ns = namespace(found=false, items=[]) %}
{% for m in messages if not ns.found %}{% set ns.items = ns.items + [m.role] %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}
{{ ns.items }} {{ ns.found }}
{% set block %}  inner {{ messages|length }}
{% endset %}[{{ block }}]
{% set shout | upper | trim %} abc {% endset %}[{{ shout }}]
{% filter replace('a', 'b') | indent(2, true) %}
a line
another

end
{% endfilter %}
{% with a = 1, b = 'x' %}{{ a }}{{ b }}{% set a = 2 %}{{ a }}{% endwith %}{{ a is defined }}
{% generation %}kept {{ messages[0].role }}{% endgeneration %}

{% raw %}{{ not }} {% rendered %}{% endraw %}
{%- for (a, b), c in [((1, 2), 3), ((4, 5), 6)] %} {{ a }}{{ b }}{{ c }}{%+ endfor %}
{% for k, v in {'b': 1, 'a': [2, 'x']}.items() %}{{ k }}={{ v }};{% endfor %}
    {%+ if true %}kept indent{% endif %}
    {% if true %}
    dropped indent {{- ' joined' }}
    {% endif +%}
  tail   {#- comment -#}   end
{{ "no newline at the end" }}
"""

VARIABLES = {
    "s": "Hello Wörld", "e": "", "n": 42, "f": 2.5, "t": True, "no": False, "nothing": None,
    "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "d": {"b": 1, "a": "x", "C": None}, "deep": {"a": {"b": [10, 20]}},
    "users": [{"name": "Zoe", "age": 30, "ok": True}, {"name": "adam", "age": 4, "ok": False}, {"name": "Bob", "age": 30}],
    "lines": "one\ntwo\n\nthree", "quote": "it's \"q\" \\ \t é \u0007 \u200b 😀", "html": "<a href='x'>&\"</a>",
    "messages": [{"role": "user", "content": "x"}],
}

SNIPPETS = r"""
{{ 1 }}|{{ 1.0 }}|{{ 1e3 }}|{{ 1e16 }}|{{ 1.5e-7 }}|{{ 0.1 + 0.2 }}|{{ 123456789012345680.0 }}|{{ 1_000 }}|{{ -0.0 }}
{{ 'a\n\t\\\'\x41\u00e9\U0001F600\101\q' }}|{{ "it's" }}|{{ 'a' 'b' "c" }}
{{ true }} {{ True }} {{ none }} {{ None }} {{ false }}
{{ [1, 'a', none, 2.0, true, [], {}, ()] }} {{ (1,) }} {{ (1, 2) }} {{ {'a': 1, 2: [3], none: 'x'} }}
{{ [quote] }}
{{ ["it's", 'say "x"', 'both \' "', 'new\nline', '\u00a0\u00ad\u2028é日'] }}
{{ undefined_name }}|{{ d.missing }}|{{ d['missing'] }}|{{ l[10] }}|{{ s.nope }}|{{ [undefined_name] }}
{{ undefined_name.x }}
{{ d.missing.x }}
{{ undefined_name + 1 }}
{{ undefined_name() }}
{{ d.missing['x'] }}
{{ undefined_name == undefined_name }} {{ undefined_name == none }} {{ undefined_name is none }} {{ not undefined_name }}
{{ undefined_name < 1 }}
{{ undefined_name | length }} {{ undefined_name | list }} [{{ undefined_name | join(',') }}] [{{ undefined_name | upper }}] {{ undefined_name | default('d') }}
{{ 'x' in undefined_name }} {{ 'x' ~ undefined_name ~ 1 ~ none ~ 2.0 ~ true }}
{{ undefined_name | int }}
{{ undefined_name | tojson }}
{{ -undefined_name }}
{{ n + 1 }} {{ n - 50 }} {{ n * 2 }} {{ n / 4 }} {{ n // 4 }} {{ n % 5 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }}
{{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 7 / 2 }} {{ 1 / 3 }} {{ 10 / 5 }} {{ 1e308 * 10 }} {{ 5 % 1.5 }} {{ true + true }} {{ 3 - true }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 1.5 // 0 }}
{{ 'a' * 3 }} {{ [1] * 2 }} {{ 3 * 'ab' }} {{ 'a' * -1 }}| {{ 'a' + 'b' }} {{ [1] + [2] }} {{ (1,) + (2,) }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ [1] + (2,) }}
{{ none + 'a' }}
{{ 'a' - 'b' }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 == true }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 'Z' < 'a' }} {{ 1 != 2 }} {{ 2 >= 2 }} {{ 3 <= 2 }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ 1 in [1, 2] }} {{ 1.0 in [1] }} {{ 'ell' in s }} {{ 'a' in d }} {{ 'z' not in d }} {{ not 'z' in d }} {{ 2 in (1, 2) }} {{ '' in 'x' }}
{{ 1 in 'a' }}
{{ 1 in 5 }}
{{ 0 or 'x' }} {{ 1 and 'y' }} {{ '' or none }} {{ 1 and 0 or 2 }} {{ not 1 }} {{ not '' and 1 }} {{ [] or {} }}
{{ 'yes' if t else 'no' }} {{ 'yes' if no }}| {{ 'a' if no else 'b' if no else 'c' }} {{ (1 if no) is defined }}
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[:-1] }} {{ l[::-1] }} {{ l[::2] }} {{ l[5:] }} {{ l[-2:] }} {{ l[2:0:-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[-4:] }} {{ s[7] }} {{ s[100:] }}|
{{ l[::0] }}
{{ d['a':'b'] }}
{{ n[1:] }}
{{ l['a':] }}
{{ d.keys()[0] }}|
{{ d.keys()[0:1] }}
{{ (1, 2, 3)[1:] }} {{ n[0] }}| {{ l['x'] }}| {{ range(10)[2:5] | list }} {{ range(5)[-1] }}
{{ d.a }} {{ d['a'] }} {{ deep.a.b[1] }} {{ deep['a'].b.0 }} {{ d.items is defined }} {{ d.C }} {{ d.get('zz') }} {{ d.get('zz', 5) }} {{ d.get('b') }}
{{ d.keys() | list }} {{ d.values() | list }} {{ d.items() | list }} {{ d | list }} {{ d | length }} {{ d.items() | length }}
{% for k, v in d.items() %}{{ k }}:{{ v }},{% endfor %} {% for k in d %}{{ k }}{% endfor %} {% for c in 'añb' %}<{{ c }}>{% endfor %}
{% for a, b in [1, 2] %}{{ a }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% for a in 5 %}{{ a }}{% endfor %}
{% for a in none %}{{ a }}{% endfor %}
{% for a in undefined_name %}{{ a }}{% else %}none{% endfor %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, %}{{ c }}
{% set a, b = 1 %}
{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set ns = namespace(a=1) %}{% for i in [1, 2, 3] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b is defined }}
{% set d.a = 1 %}
{% set q.a = 1 %}
{{ [] is sequence }} {{ {} is sequence }} {{ 'a' is sequence }} {{ 1 is sequence }} {{ d.items() is sequence }} {{ range(2) is sequence }}
{{ 1 is number }} {{ true is number }} {{ true is integer }} {{ 1.0 is float }} {{ 1 is float }} {{ '1' is number }} {{ true is boolean }} {{ 1 is boolean }} {{ 1 is true }} {{ true is true }} {{ false is false }}
{{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(4) }} {{ 1 is eq 1 }} {{ 1 is ne 2 }} {{ 3 is gt 2 }} {{ 3 is lessthan 2 }} {{ 1 is in [1] }} {{ 2 is not in [1] }} {{ 1 is ge(1) }} {{ 1 is equalto 1.0 }}
{{ 'a' is odd }}
{{ s is string }} {{ d is mapping }} {{ l is mapping }} {{ l is iterable }} {{ 5 is iterable }} {{ none is none }} {{ x is defined }} {{ x is undefined }} {{ s is defined and s is string }} {{ x is not defined or 1 }} {{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'a1' is lower }} {{ '1' is upper }}
{{ range is callable }} {{ s is callable }} {{ none is sameas none }} {{ 1 is sameas true }} {{ 'upper' is filter }} {{ 'nope' is filter }} {{ 'odd' is test }}
{{ s is nope }}
{{ s | nope }}
{{ s | upper }} {{ s | lower }} {{ 'hELLO wörld-foo (bar) x' | title }} {{ 'hELLO' | capitalize }} {{ 'ß' | upper }} {{ 'éa' | capitalize }} {{ 'ÀÉ' | lower }} {{ '' | capitalize }}|
[{{ '  a b \n' | trim }}] [{{ 'xxaxx' | trim('x') }}] [{{ ' \u00a0\u3000a\u001f' | trim }}] {{ 5 | trim }}
{{ s | length }} {{ '' | length }} {{ l | count }} {{ range(7) | length }}
{{ 5 | length }}
{{ s | replace('o', '0') }} {{ 'aaaa' | replace('a', 'b', 2) }} {{ 'abc' | replace('', '-') }} {{ 'abc' | replace('b', '') }} {{ 123 | replace(2, 'x') }}
{{ l | join }} {{ l | join(', ') }} {{ users | join(', ', attribute='name') }} {{ 'abc' | join('-') }} {{ d | join('|') }} {{ [none, 1.5, true] | join(' ') }}
{{ l | sort }} {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ l | sort(reverse=true) }} {{ users | sort(attribute='name') | map(attribute='name') | list }} {{ users | sort(attribute='age,name') | map(attribute='name') | join(',') }}
{{ [1, 'a'] | sort }}
{{ d | dictsort }} {{ d | dictsort(true) }} {{ {'x': 3, 'y': 1} | dictsort(false, 'value') }} {{ {'x': 3, 'y': 1} | dictsort(reverse=true) }}
{{ words | unique | list }} {{ ['a', 'A', 'b'] | unique(true) | list }} {{ [1, 1.0, true, 2] | unique | list }}
{{ l | first }} {{ l | last }} {{ [] | first }}| {{ s | first }} {{ s | last }} {{ d | first }} {{ l | min }} {{ l | max }} {{ words | max }} {{ [] | min }}| {{ users | max(attribute='age') }} {{ l | sum }} {{ users | sum(attribute='age') }} {{ l | sum(start=10) }} {{ [] | sum }}
{{ l | reverse | list }} {{ s | reverse }} {{ l | map('string') | join }} {{ words | map('upper') | list }} {{ ['a-b'] | map('replace', '-', '+') | list }} {{ users | map(attribute='zz', default='-') | list }} {{ users | map(attribute='name') | map('lower') | join(' ') }}
{{ l | map('nope') | list }}
{{ users | selectattr('ok') | map(attribute='name') | list }} {{ users | rejectattr('ok') | list | length }} {{ users | selectattr('age', 'equalto', 30) | map(attribute='name') | list }} {{ users | selectattr('ok', 'defined') | list | length }} {{ users | rejectattr('name', 'in', ['Zoe']) | list | length }}
{{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ [0, 1, '', 'a'] | select | list }} {{ l | select('divisibleby', 2) | list }}
{% if [] | select %}true{% else %}false{% endif %} {{ (l | select('gt', 5)) is iterable }} {{ (l | map('abs')) | list | length }}
{% set g = l | map('abs') %}{{ g | list }}{{ g | list }}
{% for c, people in users | groupby('age') %}{{ c }}:{{ people | map(attribute='name') | join(',') }};{% endfor %} {{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 'x') | list }}
{{ d | items | list }} {{ undefined_name | items | list }}
{{ l | items | list }}
{{ d | tojson }} {{ quote | tojson }} {{ [1, 2.0, none, true, 'é'] | tojson }} {{ (1, 2) | tojson }} {{ {1: 2, none: 3, true: 4, 2.5: 5} | tojson }} {{ '</script>&' | tojson }} {{ [] | tojson }} {{ {} | tojson }}
{{ deep | tojson(indent=2) }} {{ [] | tojson(indent=2) }} {{ [1, []] | tojson(indent=0) }} {{ deep | tojson(indent='\t') }}
{{ d | tojson(separators=(',', ':')) }} {{ d | tojson(sort_keys=true) }} {{ 'é😀' | tojson(ensure_ascii=true) }} {{ 'é' | tojson(true) }} {{ deep | tojson(indent=4, separators=(', ', ' : ')) }}
{{ range | tojson }}
{{ {'a': undefined_name} | tojson }}
{{ '42' | int }} {{ '42.9' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 2.9 | int }} {{ -2.9 | int }} {{ 'ff' | int(0, 16) }} {{ '0x1F' | int(base=16) }} {{ none | int }} {{ true | int }} {{ ' 5 ' | int }} {{ '1_0' | int }} {{ '' | int }} {{ '+3' | int }} {{ '-3' | int }} {{ '1e3' | int }}
{{ '2.5' | float }} {{ 'x' | float }} {{ 'x' | float(1.5) }} {{ 3 | float }} {{ '1e5' | float }} {{ none | float }}
{{ 42.55 | round }} {{ 42.55 | round(1) }} {{ 42.55 | round(1, 'floor') }} {{ 42.1 | round(0, 'ceil') }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 42 | round }} {{ 1234.5 | round(-2) }} {{ 2.675 | round(2) }} {{ -5 | abs }} {{ -2.5 | abs }} {{ -0.4 | round }}
{{ 'x' | abs }}
{{ 'x' | round }}
{{ lines | indent }}|{{ lines | indent(2, true) }}|{{ lines | indent(width=1, blank=true) }}|{{ lines | indent('> ') }}|{{ '' | indent }}|{{ 'a\n' | indent }}
{{ html | e }} {{ html | escape }} {{ 'a b-c d_e' | wordcount }} [{{ 'ab' | center(7) }}] [{{ 'abc' | center(6) }}] {{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true) }} {{ 'foo bar baz qux' | truncate(11, false, '...', 0) }}
{{ '%s is %d, %05.1f%%' | format('x', 3, 2.25) }} {{ '%s-%s' % (1, 'b') }} {{ '%5s|%-5s|%03d|%x|%r' % ('a', 'b', 7, 255, 'q') }} {{ '%(a)s' % {'a': 5} }} {{ '%s' % none }} {{ '%.2s' % 'abc' }} {{ '%+d % d' % (3, 4) }} {{ '%e' % 12345.678 }} {{ '%g' % 0.0001 }} {{ '%d' % 3.7 }} {{ '%i' % true }}
{{ '%d' % 'x' }}
{{ '%s %s' % 'x' }}
{{ '%s' % (1, 2) }}
{{ 'a' % [1] }} {{ 'a' % d }} {{ 'a' % undefined_name }} {{ '%s' % [1] }}
{{ 'a' % 1 }}
{{ [d] | min }} {{ [d] | max | length }}
{{ l | truncate(1) }} {{ 5 | truncate }}
{{ '{} {} {{}}'.format(1, 'a') }} {{ '{0}{1}{0}'.format('x', 'y') }} {{ '{a}-{b}'.format(a=1, b=none) }}
{{ '{} {}'.format(1) }}
{{ '  x '.strip() }}| {{ '  x '.lstrip() }}| {{ '  x '.rstrip() }}| {{ 'xyx'.strip('x') }} {{ 'abcabc'.rstrip('bc') }} {{ 'aXbX'.lstrip('Xa') }}
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ 'a b  c'.rsplit(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a b c d'.split(maxsplit=2) }} {{ 'a\nb\r\nc\u2028d'.splitlines() }} {{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('x') }}
{{ 'a'.split('') }}
{{ s.startswith('Hell') }} {{ s.endswith(('x', 'd')) }} {{ s.upper() }} {{ s.lower() }} {{ 'hello wORLD x1y'.title() }} {{ 'hELLO'.capitalize() }} {{ s.replace('l', 'L', 1) }} {{ s.find('W') }} {{ s.find('zz') }} {{ s.rfind('o') }} {{ s.count('l') }} {{ '-'.join(['a', 'b']) }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removesuffix('x') }}
{{ '-'.join([1]) }}
{{ s.index('zz') }}
{{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ ''.isdigit() }} {{ 'aB'.islower() }} {{ 'AB'.isupper() }} {{ '5'.zfill(3) }} {{ '-5'.zfill(4) }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '*') }}
{{ l.index(1) }} {{ l.count(3) }} {{ (1, 2).index(2) }}
{{ l.append(4) }}
{{ l.sort() }}
{{ d.update({}) }}
{{ d.pop('a') }}
{{ s.__class__ }}|{{ s.__class__.__mro__ }}
{{ ''.__class__ }}|{{ d.__len__ }}|
{{ range(3) | list }} {{ range(1, 7, 2) | list }} {{ range(3, 0, -1) | list }} {{ range(0) | list }} {% for i in range(2) %}{{ i }}{% endfor %}
{{ range(100001) | list | length }}
{{ range(1, 2, 0) }}
{{ dict(a=1, b=2) }} {{ dict({'x': 1}, y=2) }} {{ dict([('a', 1)]) }} {{ {'a': 1, 'a': 2} }} {{ {1: 'a', 1.0: 'b', true: 'c'} }} {{ {(1, 2): 3}[(1, 2)] }} {{ {'a': 1} == {'a': 1.0} }}
{{ {[1]: 2} }}
{{ d[[1]] }}|{{ [1] in d }}
{{ {'b': 1, 'a': 2} == {'a': 2, 'b': 1} }} {{ [1, [2]] == [1, [2]] }} {{ (1,) == [1] }} {{ 'a' == 'a' }} {{ none == false }}
{{ strftime_now('%Y-%m-%d %H:%M:%S %j %a %B %-d') }} {{ strftime_now('') }}|
{{ raise_exception('stop') }}
{% macro deep(n) %}{{ deep(n + 1) }}{% endmacro %}{{ deep(0) }}
{% set j = joiner('; ') %}{{ j() }}a{{ j() }}b{{ j() }}c
{% macro m(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(b=1, a=0) }} {{ m() }} {{ m('x') | upper }} {{ m(1) ~ m(2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, c=2) }}
{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}
{% macro m() %}[{{ caller(1, b=2) }}]{% endmacro %}{% call(a, b) m() %}{{ a }}+{{ b }}{% endcall %}
{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}
{% macro outer() %}{% macro inner() %}i{{ v }}{% endmacro %}{{ inner() }}{% endmacro %}{% set v = 5 %}{{ outer() }}{{ inner is defined }}
{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * (fact(n - 1) | int) }}{% endif %}{% endmacro %}{{ fact(10) }}
{{ m is defined }}{% macro m() %}{% endmacro %}{{ m is defined }} {{ m is callable }}
{% for i in [1, 2, 3, 4] if i is even %}{{ loop.index }}{{ i }}{{ loop.last }}{% endfor %}
{% for i in [1, 2] %}{% for j in [3, 4] %}{{ loop.index }}{{ i }}{{ j }}{% endfor %}{{ loop.index }}{% endfor %}{{ loop is defined }}
{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %} {% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}
{{ loop.index }}
{% break %}
{% endif %}
{% if true %}
{{ 1
{{ (1 }}
{{ 1) }}
{{ }}
{% %}
{% nope %}
{# open
{{ 'open }}
{{ 1 2 }}
{{ a b }}
{{ = }}
{{ ? }}
{% for x y %}{% endfor %}
{% set 1 = 2 %}
{% set x %}
{% include 'x' %}
{% raw %}x
{{ 'a' is string is string }}
{{ f(a=1, 2) }}
a {# c #} b {#- c -#} c
{{- ' x ' -}} y {{- 'z' }}
{%- raw -%}  {{ x }}  {%- endraw -%}  z
{{ -1 | abs }} {{ -n }} {{ +n }} {{ - 2 }} {{ 1 - -1 }} {{ not -1 }} {{ 2 + 3 * 4 }} {{ (2 + 3) * 4 }} {{ 'a' ~ 1 * 2 }} {{ '1' ~ '2' | int }} {{ 'a' + 'b' ~ 'c' }}
{{ 'a' ~ 1 + 2 }}
{{ 5 is odd and 4 is even }} {{ n is number == true }} {{ 1 if s is string else 2 }} {{ s is string and 'a' or 'b' }} {{ 'a' in ['a'] and true }} {{ 'x' if 'x' in d else 'y' }} {{ 1 + 1 in [2] }}
{{ users[0].name | lower | first | upper }} {{ (users | first).name }} {{ users[-1]['name'][0] }} {{ [1, 2, 3][1:][0] }} {{ 'abc'[1] | upper }} {{ {'a': [1, 2]}['a'][-1] }} {{ (1, 2)[0] }} {{ 'a.b'.split('.')[1].upper() }}
{{ max(1, 2) }}
{{ namespace(a=1).a }} {{ namespace().a }}| {{ namespace({'x': 2}).x }} {{ namespace(a=1)['a'] }}
{{ messages[0]['content'].strip().split()[0] }} {{ messages | map(attribute='role') | unique | list | length }}
{{ 'x' | attr('upper') is callable }} {{ d | attr('a') is defined }}
{{ 9223372036854775807 }} {{ -9223372036854775807 }}
{{ 3.0 == 3 }} {{ 100000000000000000000.0 }} {{ 1.0e22 }} {{ 0.00001 }} {{ 0.0001 }} {{ 1234567.891 }}
"""

# Several lines that belong together, in the order of the list above.
MULTI_LINE = ["  {% if true %}  \nx\n  {% endif %}  \ny\n", "  {%- if true -%}  \nx\n  {%- endif -%}  \ny\n",
              "  {% raw %}\n a {% endraw %}\nb\n", "a\n\n", "a\r\nb\rc\n", "\n\n{% if true %}\n\n{% endif %}\n\n",
              "{% if true %}\r\nx{% endif %}", "a{% set x = 1 -%}\n\n b", "{{ 1 -}}\n  x", "\t{%+ if true %}x{% endif %}\n",
              "{% for i in [1,2] %}\n  {{ i }}\n{% endfor %}\nend", "x {#- a\nb -#} y", "  {# c #}\nz", "{{ 'a\nb' }}",
              "{% set x %}\n  a\n{% endset %}{{ x }}|", "{{\n1\n}}", "{%\nif true\n%}x{% endif\n%}"]


def main():
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    templates = {}
    for name, source in TEMPLATES.items():
        rendered = {}
        for chat, variables in CONVERSATIONS.items():
            defaults = {"tools": None, "documents": None, "add_generation_prompt": True, **tokens}
            rendered[chat] = render(source, {**defaults, **variables})
        assert any(text is not None for text in rendered.values()), name
        templates[name] = {"source": source, "rendered": rendered}
    sources = [line for line in SNIPPETS.splitlines() if line]
    snippets = [[source, render(source, VARIABLES)] for source in sources + MULTI_LINE]
    golden = {"conversations": CONVERSATIONS, "tokens": tokens, "templates": templates,
              "variables": VARIABLES, "snippets": snippets}
    OUT.write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n")
    n_raise = sum(text is None for _, text in snippets)
    print(f"{OUT}: {len(templates)} templates, {len(snippets)} snippets ({n_raise} raise), {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
