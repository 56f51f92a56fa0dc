#!/usr/bin/env python3
"""Writes tests/golden/templates/: what jinja2, in the environment of transformers'
apply_chat_template, makes of small templates (features.json) and of conversations (chats.json).

Run with a Python that has transformers and jinja2:  scripts/goldens_templates.py
The result is deterministic. Each entry of features.json has "name", "template", "context" (JSON
text: the order of keys counts) and either "text", or "raised" (the message of raise_exception), or
"error" (the exception's type; our words differ). The chat templates *.jinja beside it are written
by hand. With --special-case it prints the tables of coordinator/text/jinja/special_case.h instead.
"""
import datetime
import json
import pathlib
import sys

import jinja2
from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "golden" / "templates"


class Now(datetime.datetime):
    """What strftime_now tells, also in our tests."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 22, 9, 8, 7)


CONTEXT = {
    "s": "Hello, World",
    "u": "naïve 日本 👍🏽 ß",
    "blank": "  \t a b \n",
    "n": 7,
    "big": 18446744073709551615,
    "f": 2.5,
    "yes": True,
    "no": False,
    "nothing": None,
    "empty": [],
    "list": [3, 1, 2],
    "words": ["beta", "Alpha", "gamma"],
    "d": {"b": 1, "a": [1, 2.0, None, True], "items": "shadowed", "key with space": "x"},
    "rows": [{"role": "user", "n": 2, "tags": ["x"]}, {"role": "Assistant", "n": 1, "tags": []},
             {"role": "user", "n": 3}],
    "html": "<a href=\"x\">'&'</a>",
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},
                 {"role": "assistant", "content": "A"}],
}

# name: template. What is not "text" is an error, and must be one here too.
TEMPLATES = {
    # whitespace and lexing
    "trim_blocks": "a\n{% if yes %}\nb\n{% endif %}\nc\n",
    "lstrip_blocks": "a\n   {% if yes %}\n b\n   {%+ if yes %}c{% endif +%}\n  {# note #}\nd{% endif %}",
    "minus_strips": "a \n {%- if yes -%} \n b \n {%- endif -%} \n c {{- ' d ' -}} e {#- x -#} f",
    "variable_keeps_line": "  {{ n }}\n\n{{ n }}\n",
    "one_newline_at_end_goes": "x\n\n",
    "line_ends_are_unified": "a\r\nb\rc\n{{ 'x\r\ny' }}",
    "raw": "{% raw %}{{ x }} {% if %}{% endraw %}\n!{%- raw -%}  {# #}  {%- endraw -%}  ?",
    "comments": "a{# {{ b }} #}c{#\n-#}\n d{#+ e +#}\nf",
    "escapes": r"""{{ 'a\nb\t\'\"\\\x41\u00e9\U0001f44d\101\q' }}{{ "x" 'y' }}{{ '\é' }}""",
    "braces_in_tags": "{{ {'a': {'b': 1}} }}{{ '}}' }}{% set x = '%}' %}{{ x }}",
    "numbers": "{{ 1_000 }} {{ 0x1F }} {{ 0b11 }} {{ 0o17 }} {{ 1.5e3 }} {{ 1e16 }} {{ 1e-5 }}",
    "float_text": "{{ 0.1 + 0.2 }} {{ 1e22 }} {{ 123456789012345.0 }} {{ 1e15 }} {{ 5e-324 }} "
                  "{{ -0.0 }} {{ 1 / 3 }} {{ 100.0 }} {{ 0.0001 }} {{ 0.00001 }}",
    # values as text
    "text_of_values": "{{ nothing }} {{ yes }} {{ [1, 'a', none, 2.0, true] }} {{ d }} {{ (1,) }}"
                      " {{ () }} {{ ('a', \"b'c\") }} {{ {} }} {{ missing }}|",
    "repr_escapes": "{{ ['\\n\\t\\\\ \\x00 \\u00e9 \\u200b \"', \"it's\", '\\'\"'] }}",
    "views": "{{ d.keys() }} {{ d.values() | list }} {{ {'a': 1}.items() }} {{ range(3) }}"
             " {{ range(1, 7, 2) | list }}",
    "big_integers": "{{ big }} {{ big + 1 }} {{ [big] | tojson }}",
    # operators
    "arithmetic": "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }}"
                  " {{ 2 ** -1 }} {{ -2 ** 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 2 ** 3 ** 2 }}",
    "text_operators": "{{ 'a' + 'b' }} {{ 'ab' * 3 }} {{ 'a' ~ 1 ~ none ~ missing }}"
                      " {{ '%s is %d (%5.2f|%-5s|%05d)' % ('x', 3, 2.345, 'l', 42) }}",
    "list_operators": "{{ [1] + [2] }} {{ [0] * 3 }} {{ (1, 2) + (3,) }} {{ true + 1 }}",
    "comparisons": "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }}"
                   " {{ [1, 2] < [1, 3] }} {{ missing == other }} {{ missing == none }}",
    "membership": "{{ 'ell' in s }} {{ 2 in list }} {{ 'b' in d }} {{ 9 not in list }}"
                  " {{ 1 in missing }} {{ 'x' in d.values() }} {{ 1.0 in list }}",
    "logic": "{{ 0 or 'x' }} {{ 1 and 'y' }} {{ not empty }} {{ none or [] }} {{ not not 1 }}"
             " {{ 'a' if no else 'b' }} {{ 'a' if no }}| {{ missing or 'd' }}",
    "precedence": "{{ 2 * 3 ~ 4 }} {{ 1 ~ 2 * 3 }} {{ not 1 == 2 }} {{ -n | abs }} {{ 2 * 3 is odd }}"
                  " {{ 'a' ~ 'b' | upper }} {{ 1 if 0 else 2 if 0 else 3 }}",
    # access
    "attributes": "{{ d.b }} {{ d['b'] }} {{ d.items is callable }} {{ d['items'] }}"
                  " {{ d['key with space'] }} {{ d.a.1 }} {{ d.missing }}| {{ d.get('z', 5) }}",
    "indices": "{{ list[0] }} {{ list[-1] }} {{ list[9] }}| {{ s[1] }} {{ u[2] }} {{ u[-1] }}"
               " {{ range(5)[2] }} {{ (4, 5)[1] }}",
    "slices": "{{ s[1:5] }} {{ s[::-1] }} {{ list[1:] }} {{ list[::-1] }} {{ list[-2:9] }}"
              " {{ u[2:8] }} {{ u[::-2] }} {{ s[5:1:-2] }} {{ range(9)[2:7:2] | list }}",
    "dict_methods": "{{ d.keys() | list }} {{ d.get('b') }} {{ d.get('zz') }}"
                    " {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "string_methods": "{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ s.split(', ') }}"
                      " {{ blank.strip() }}| {{ 'xxaxx'.strip('x') }} {{ 'a,b,c'.split(',', 1) }}"
                      " {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a  b '.split() }} {{ '-'.join(words) }}"
                      " {{ s.replace('l', 'L', 2) }} {{ s.startswith(('x', 'He')) }}"
                      " {{ s.find('o') }} {{ s.rfind('o') }} {{ s.count('l') }}"
                      " {{ 'ab'.center(7, '*') }} {{ '7'.zfill(3) }} {{ 'a\\nb'.splitlines() }}"
                      " {{ 'k=v=w'.partition('=') }} {{ 'abc'.removeprefix('a') }}",
    "unicode_methods": "{{ u.upper() }} {{ 'ΑΣ ΟΔΟΣ'.lower() }} {{ 'ﬁx'.capitalize() }}"
                       " {{ u | length }} {{ 'é'.isalpha() }} {{ '²'.isdigit() }}"
                       " {{ '\\u2003x'.strip() }} {{ u.find('日') }} {{ u.swapcase() }}",
    "format_method": "{{ '{} {1}'.format(1) if no else '{} {}'.format(1, 'b') }}"
                     " {{ '{0:>5}|{1:<4}|{x:^6}|'.format('a', 7, x='m') }} {{ '{:.3f}'.format(f) }}"
                     " {{ '{:,}'.format(1234567) }} {{ '{!r:>6}'.format('q') }} {{ '{{}}'.format() }}"
                     " {{ '{0[b]} {0.b}'.format(d) }} {{ '{:05.1f} {:+d} {:x}'.format(f, 3, 255) }}",
    # statements
    "loop_variables": "{% for x in words %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}"
                      "{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}"
                      "{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('-', '+') }}"
                      "{{ loop.changed(x[0]) }};{% endfor %}",
    "loop_filter": "{% for r in rows if r.role == 'user' %}{{ loop.index }}/{{ loop.length }}"
                   "{{ r.n }}{{ loop.last }};{% else %}none{% endfor %}",
    "loop_filter_is_lazy": "{% set ns = namespace(seen=0) %}{% for x in list if ns.seen < 2 %}"
                           "{% set ns.seen = ns.seen + 1 %}{{ x }}{% endfor %}",
    "loop_else": "{% for x in empty %}a{% else %}b{% endfor %}"
                 "{% for x in list %}{% continue %}{% else %}c{% endfor %}"
                 "{% for x in list %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "loop_nested": "{% for a in list %}{% set outer = loop %}{% for b in words %}"
                   "{{ outer.index }}.{{ loop.index }} {% endfor %}{% endfor %}",
    "unpacking": "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}"
                 "{% set x, y = 'pq' %}{{ x }}{{ y }}{% set t = 1, 2 %}{{ t }}",
    "scopes": "{% set x = 1 %}{% for i in list %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}"
              "{% if yes %}{% set z = 5 %}{% endif %}{{ z }}{% with x = 9 %}{{ x }}{% endwith %}{{ x }}",
    "scope_reads_context_first": "{{ n }}{% if no %}{% set n = 1 %}{% endif %}{{ n }}",
    "scope_assigned_later": "{% macro m() %}[{{ n }}]{% endmacro %}{{ m() }}{% set n = 1 %}{{ m() }}",
    "namespace": "{% set ns = namespace(a=1, b='x') %}{% for i in list %}{% set ns.a = ns.a + i %}"
                 "{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c }}|{{ ns['a'] }}{{ ns.c is defined }}",
    "set_block": "{% set x %}a {{ n }}\nb{% endset %}[{{ x }}]{% set y | upper | trim %} q {% endset %}{{ y }}",
    "macros": "{% macro m(a, b='B', c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}"
              "{{ m(1) }} {{ m(1, 2) }} {{ m(b=3, a=4) }} {{ m() }}| {{ m(c='c', a='a') }}",
    "macro_closure": "{% set x = 'a' %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 'b' %}{{ m() }}",
    "macro_recursion": "{% macro fact(k) %}{{ 1 if k < 2 else k * (fact(k - 1) | int) }}{% endmacro %}{{ fact(6) }}",
    "macro_varargs": "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }}"
                     "{{ m(*[5, 6], **{'z': 7}) }}",
    "call_block": "{% macro box(t) %}<{{ t }}>{{ caller('q') }}</{{ t }}>{% endmacro %}"
                  "{% call(v) box('b') %}in {{ v }} {{ n }}{% endcall %}",
    "filter_block": "{% filter upper | replace('A', '4') %}banana {{ s }}{% endfilter %}",
    "generation": "{% for m in messages %}{% generation %}{% set q = m.role %}[{{ q }}]{% endgeneration %}\n{% endfor %}{{ q }}",
    "cycler_and_joiner": "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}"
                         "{% set j = joiner('; ') %}{% for x in list %}{{ j() }}{{ x }}{% endfor %}",
    "globals": "{{ range(2, 8, 3) | list }} {{ dict(a=1, b=2) }} {{ dict([('x', 1)], y=2) }}"
               " {{ strftime_now('%Y-%m-%d %H:%M:%S %a %B %j%%') }} {{ dict.fromkeys('ab', 0) }}",
    # filters
    "tojson": "{{ d | tojson }} {{ u | tojson }} {{ html | tojson }} {{ [1.0, 1e100, none] | tojson }}"
              " {{ d | tojson(indent=2) }} {{ {'b': 1, 'a': {}} | tojson(sort_keys=true) }}"
              " {{ [1, 2] | tojson(separators=(',', ':')) }} {{ u | tojson(ensure_ascii=true) }}"
              " {{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }} {{ [] | tojson(indent=1) }}"
              " {{ (1, 'a\\x07\\x7f') | tojson(indent='--') }}",
    "filters_of_text": "{{ s | upper }} {{ s | lower }} {{ 'foo-bar baz' | title }} {{ 'aB' | capitalize }}"
                       " {{ blank | trim }}| {{ 'xax' | trim('x') }} {{ s | replace('l', 'L') }} {{ 5 | string }}"
                       " {{ 'a\\nb\\n\\nc' | indent }} {{ 'a\\nb' | indent(2, true) }} {{ 'a b c' | wordcount }}"
                       " {{ 'foo bar baz qux' | truncate(9, leeway=0) }} {{ 'x' | center(5) }}| {{ s | reverse }}"
                       " {{ 'a b/c?' | urlencode }} {{ '%s-%s' | format('a', 1) }} {{ 3000 | filesizeformat }}",
    "filters_of_lists": "{{ list | first }} {{ list | last }} {{ list | length }} {{ list | sort }}"
                        " {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ list | sort(reverse=true) }}"
                        " {{ list | join('-') }} {{ rows | join(',', attribute='role') }} {{ list | sum }}"
                        " {{ list | max }} {{ words | min }} {{ [1, 1, 2] | unique | list }} {{ 'abc' | list }}"
                        " {{ list | reverse | list }} {{ [1, 2, 3] | batch(2, 'x') | list }} {{ list | slice(2) | list }}"
                        " {{ rows | sum(attribute='n') }}",
    "filters_of_dicts": "{{ d | dictsort }} {{ {'b': 1, 'a': 2} | dictsort(by='value') }} {{ {'x': 1} | items | list }}"
                        " {% for k, v in d | items %}{{ k }}{% endfor %} {{ rows | groupby('role') }}"
                        " {% for g in rows | groupby('role') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}",
    "select_and_map": "{{ rows | selectattr('role', 'equalto', 'user') | list | length }} {{ rows | map(attribute='n') | list }}"
                      " {{ words | map('upper') | join(' ') }} {{ list | select('gt', 1) | list }} {{ list | reject('odd') | list }}"
                      " {{ rows | rejectattr('tags') | list | length }} {{ rows | map(attribute='tags', default='-') | list }}"
                      " {{ rows | selectattr('tags', 'defined') | map(attribute='role') | list }} {{ rows | selectattr('n', '>', 1) | list | length }}"
                      " {{ 'yes' if empty | select | list else 'no' }} {{ 'yes' if list | select('gt', 9) else 'no' }}",
    "numbers_filters": "{{ '42' | int }} {{ '4.7' | int }} {{ 'x' | int(9) }} {{ 'ff' | int(base=16) }} {{ '1.5' | float }}"
                       " {{ 2.5 | round }} {{ 3.14159 | round(2) }} {{ 2.1 | round(0, 'ceil') }} {{ -3 | abs }} {{ 7 | round }}",
    "default": "{{ missing | default('x') }} {{ '' | default('x') }}| {{ '' | default('x', true) }} {{ none | d('y') }} {{ none | d('y', true) }}",
    "safe_text_escapes": "{{ '<b>' | safe }} {{ ('<b>' | safe) + html }} {{ html + ('<i>' | safe) }} {{ html | e }}"
                         " {{ ('<' | safe) ~ '>' ~ html }} {{ ['<' | safe] }} {{ '%s' | safe % html }}",
    "generators_are_read_once": "{% set g = list | map('string') %}{{ g | list }}{{ g | list }}{{ 'true' if g else 'false' }}",
    # tests
    "tests_of_types": "{% for x in [1, 1.5, 'a', none, true, [], {}, missing, range(2)] %}{{ x is defined }}{{ x is none }}"
                      "{{ x is string }}{{ x is number }}{{ x is integer }}{{ x is float }}{{ x is boolean }}{{ x is mapping }}"
                      "{{ x is iterable }}{{ x is sequence }}{{ x is true }}{{ x is false }}{{ x is callable }};{% endfor %}",
    "tests_of_values": "{{ 4 is even }} {{ 4 is odd }} {{ 9 is divisibleby 3 }} {{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 2 is gt 1 }}"
                       " {{ 'a' is in ['a'] }} {{ 'a' is lower }} {{ 'A' is upper }} {{ none is sameas none }} {{ 1 is not none }}"
                       " {{ 'upper' is filter }} {{ 'odd' is test }} {{ 3 is not divisibleby 2 }}",
    "unknown_filter_behind_a_condition": "{{ (s | nonsense) if no else 'ok' }}{% if no %}{{ 1 | nonsense }}{% endif %}",
    "sandbox_hides_mutators": "{{ list.append is defined }} {{ d.update is defined }} {{ list.__class__ }}| {{ s.__len__ is defined }}",
    # errors
    "raise": "a{{ raise_exception('Roles must alternate: ' ~ n) }}",
    "raise_in_macro": "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{% for x in list %}{{ m() }}{% endfor %}",
    "error_append": "{% set _ = list.append(4) %}",
    "error_pop": "{{ d.pop('b') }}",
    "error_attribute_of_undefined": "{{ missing.x }}",
    "error_item_of_undefined": "{{ missing['x'] }}",
    "error_undefined_plus_text": "{{ missing + 'a' }}",
    "error_text_plus_undefined": "{{ 'a' + missing }}",
    "error_call_undefined": "{{ missing() }}",
    "error_text_plus_number": "{{ 'a' + 1 }}",
    "error_compare_types": "{{ 1 < 'a' }}",
    "error_none_item": "{{ nothing[1:] }}",
    "error_undefined_in_text": "{{ missing in 'abc' }}",
    "error_iterate_number": "{% for x in 5 %}{% endfor %}",
    "error_iterate_none": "{% for x in none %}{% endfor %}",
    "error_unpack": "{% for a, b in [(1, 2, 3)] %}{% endfor %}",
    "error_zero_division": "{{ 1 // 0 }}",
    "error_length_of_number": "{{ 5 | length }}",
    "error_length_of_generator": "{{ list | map('string') | length }}",
    "error_tojson_of_undefined": "{{ missing | tojson }}",
    "error_index_of_substring": "{{ s.index('zz') }}",
    "error_unhashable": "{{ {[1]: 2} }}",
    "error_big_range": "{{ range(1000000) | list }}",
    "error_namespace_underscore": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "error_not_a_namespace": "{% set d.b = 1 %}",
    "error_macro_arguments": "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "error_macro_keyword": "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
    "error_unknown_filter": "{{ s | nonsense }}",
    "error_unknown_test": "{{ s is nonsense }}",
    "error_unknown_tag": "{% nonsense %}",
    "error_unclosed_block": "{% if yes %}a",
    "error_wrong_end": "{% if yes %}{% endfor %}",
    "error_unclosed_variable": "{{ 'a'",
    "error_unclosed_string": "{{ 'a }}",
    "error_unbalanced": "{{ (1, [2) }}",
    "error_empty_expression": "{{ }}",
    "error_assign_to_literal": "{% set 1 = 2 %}",
    "error_break_outside": "{% break %}",
    "error_chained_is": "{{ 1 is odd is true }}",
    "error_format_index": "{{ '{1}'.format(0) }}",
    "error_percent_arguments": "{{ '%s %s' % (1,) }}",
    "error_keyword_then_positional": "{{ dict(a=1, 2) }}",
    "error_character": "{{ 1 ! 2 }}",
    "error_join_of_numbers": "{{ ','.join(list) }}",
    "error_sum_of_text": "{{ words | sum }}",
    "error_sort_mixed": "{{ [1, 'a'] | sort }}",
    "error_strptime_type": "{{ strftime_now(5) }}",
}

CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}]
TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "Tells the weather <now> & later",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"]}}}]
SYSTEM = {"role": "system", "content": "You are brief."}
USER = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris. 🇫🇷"}
CHATS = {
    "single": [USER],
    "with_system": [SYSTEM, USER],
    "many_turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": " And of Italy?\n"}],
    "tool_turns": [USER, {"role": "assistant", "content": None, "tool_calls": CALL},
                   {"role": "tool", "name": "weather", "content": "sunny"}],
    "reasoning": [USER, {"role": "assistant", "content": "Paris", "thinking": "easy"}, USER],
    "wrong_order": [USER, USER],
    "unknown_role": [{"role": "stranger", "content": "x"}],
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def outcome(render):
    try:
        return {"text": render()}
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            return {"raised": error.message}
        return {"error": type(error).__name__}
    except Exception as error:  # what Python itself raises within a template
        return {"error": type(error).__name__}


def feature(name, template):
    def render():
        compiled = chat_template_utils._compile_jinja_template(template)
        return compiled.render(**json.loads(json.dumps(CONTEXT)))

    entry = {"name": name, "template": template, **outcome(render)}
    expected = "raised" if name.startswith("raise") else \
        "error" if name.startswith("error") else "text"
    if expected not in entry:
        raise SystemExit(f"{name}: {entry} where {expected} was meant")
    return entry


def chat(template, name, tools, prompt):
    messages = [{k: v for k, v in message.items() if v is not None} for message in CHATS[name]]

    def render():
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], tools=tools, documents=None, add_generation_prompt=prompt,
            chat_template=(OUT / template).read_text(encoding="utf-8"), **TOKENS)
        return rendered[0]

    return {"template": template, "messages": CHATS[name], "tools": tools is not None,
            "add_generation_prompt": prompt, **outcome(render)}


def write(name, value):
    text = json.dumps(value, ensure_ascii=False, indent=1)
    (OUT / name).write_text(text + "\n", encoding="utf-8")


def special_case():
    def escaped(text):
        return "".join(f"\\u{ord(c):04X}" for c in text)

    for name, method in (("kSpecialUpper", str.upper), ("kSpecialTitle", str.title)):
        print(f"constexpr SpecialCase {name}[] = {{")
        for code in range(0x110000):
            if not 0xD800 <= code <= 0xDFFF and len(method(chr(code))) > 1:
                print(f'    {{0x{code:04X}, "{escaped(method(chr(code)))}"}},')
        print("};")


def main():
    if sys.argv[1:] == ["--special-case"]:
        return special_case()
    chat_template_utils.datetime = Now
    write("features.json", {"context": json.dumps(CONTEXT, ensure_ascii=False),
                            "cases": [feature(*item) for item in TEMPLATES.items()]})
    write("chats.json", {
        "tokens": TOKENS, "tools": TOOLS,
        "cases": [chat(path.name, name, tools, prompt)
                  for path in sorted(OUT.glob("*.jinja")) for name in CHATS
                  for tools in (None, TOOLS) for prompt in (False, True)]})


if __name__ == "__main__":
    main()
