#!/usr/bin/env python3
"""Renders every chat template that llama.cpp publishes, with transformers and with Pergola, and
compares the bytes; what raise_exception says is compared too, of other errors only that they occur.

Run with a Python that has transformers, jinja2 and pip:
  scripts/judge_templates.py RENDER_TEMPLATE [--templates FOLDER] [--verbose]
RENDER_TEMPLATE is the program tests/text/render_template.cc. The templates come from the source
package of llama-cpp-python on PyPI (76 MB, kept in ~/.cache/pergola). Ends with 1 if any differ.
"""
import argparse
import datetime
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import jinja2
from transformers.utils import chat_template_utils

VERSION = "0.3.36"
TEMPLATES = 70
NOW = (2026, 11, 22, 9, 8, 7)
TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "unk_token": "<unk>",
          "pad_token": "<pad>"}


class Now(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(*NOW)


def published_templates():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    folder = cache / "pergola" / "llama-cpp-python"
    package = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary",
                        "llama-cpp-python", "-d", str(folder), f"llama-cpp-python=={VERSION}"],
                       check=True)
    with tarfile.open(package) as archive:
        for member in archive:
            path = pathlib.PurePosixPath(member.name)
            if path.suffix == ".jinja" and path.parts[-3:-1] == ("models", "templates"):
                yield path.name, archive.extractfile(member).read().decode("utf-8")


def function(name, **properties):
    return {"type": "function", "function": {
        "name": name, "description": f"Does '{name}' <fast> & \"well\" – überall",
        "parameters": {"type": "object", "properties": properties,
                       "required": sorted(properties)[:1]}}}


def call(name, arguments, call_id="abc123def"):
    return {"id": call_id, "type": "function",
            "function": {"name": name, "arguments": arguments}}


TOOLS = [
    function("weather", city={"type": "string", "description": "The town"},
             unit={"type": "string", "enum": ["c", "f"], "default": "c"}),
    function("add", a={"type": "number", "minimum": -1.5, "maximum": 18446744073709551615},
             b={"type": ["integer", "null"]},
             rows={"type": "array", "items": {"type": "object", "properties": {
                 "x": {"type": "boolean"}}}}),
]
SYSTEM = {"role": "system", "content": "You are brief.\nVery."}
USER = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}
AGAIN = {"role": "user", "content": "  And of \"Italy\"? <b>&</b> 日本 👍🏽\n\n"}
CALLING = {"role": "assistant", "content": "",
           "tool_calls": [call("weather", {"city": "Zürich", "n": 1.5, "deep": {"a": [None]}})]}
TWO_CALLS = {"role": "assistant", "content": "Let me see.",
             "tool_calls": [call("weather", {"city": "Bern"}, "id0000001"),
                            call("add", {"a": 1, "b": None}, "id0000002")]}
TEXT_CALL = {"role": "assistant", "content": None,
             "tool_calls": [call("weather", "{\"city\": \"Basel\"}")]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abc123def",
          "content": "{\"sky\": \"clear\"}"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Look "},
                                     {"type": "image"}, {"type": "text", "text": "here"}]}
THOUGHT = {"role": "assistant", "content": "Paris.", "reasoning_content": "It is\nParis."}
INLINE = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nParis."}
CONVERSATIONS = {
    "single": [USER],
    "multi": [USER, ANSWER, AGAIN],
    "long": [USER, ANSWER, AGAIN, {"role": "assistant", "content": "Rome.\n"}, USER, ANSWER, USER],
    "ends_with_answer": [USER, ANSWER],
    "blank": [{"role": "user", "content": ""}],
    "parts": [PARTS],
    "thought": [USER, THOUGHT, AGAIN],
    "inline_thought": [USER, INLINE, AGAIN],
    "call": [USER, CALLING, RESULT],
    "call_and_answer": [USER, CALLING, RESULT, ANSWER, AGAIN],
    "two_calls": [USER, TWO_CALLS, RESULT, {**RESULT, "name": "add", "content": "3"}, ANSWER],
    "call_as_text": [USER, TEXT_CALL, RESULT],
    "thought_call": [USER, {**CALLING, "reasoning_content": "Ask."}, RESULT],
    "two_users": [USER, AGAIN],
    "assistant_first": [ANSWER, USER],
    "late_system": [USER, SYSTEM, AGAIN],
    "stranger": [{"role": "stranger", "content": "x"}],
    "developer": [{"role": "developer", "content": "Obey."}, USER],
    "named": [{**USER, "name": "Ann"}],
    "no_content": [{"role": "user"}],
    "number_content": [{"role": "user", "content": 5}],
}
VARIABLES = [{}, {"enable_thinking": False}, {"enable_thinking": True, "reasoning_effort": "low"}]
DOCUMENTS = [{"title": "Towns", "text": "Paris is one."}, {"doc_id": 2, "text": "Rome too."}]


def cases():
    for name, messages in CONVERSATIONS.items():
        for system, tools, prompt in itertools.product((False, True), repeat=3):
            for variables in VARIABLES:
                for documents in ((None, DOCUMENTS) if name == "single" else (None,)):
                    yield {"name": name, "messages": [SYSTEM, *messages] if system else messages,
                           "tools": TOOLS if tools else None, "documents": documents,
                           "variables": variables, "add_generation_prompt": prompt}


def judge(template, case):
    messages = [{k: v for k, v in message.items() if v is not None}
                for message in case["messages"]]
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[messages], tools=case["tools"], documents=case["documents"],
            chat_template=template, add_generation_prompt=case["add_generation_prompt"],
            **{**TOKENS, **case["variables"]})
        return {"text": rendered[0]}
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            return {"raised": error.message}
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:  # what Python raises within the template
        return {"error": f"{type(error).__name__}: {error}"}


def as_json(value):
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def ours(program, template, items):
    lines = [json.dumps({"template": template, "messages": item["messages"],
                         "tools": as_json(item["tools"]), "documents": as_json(item["documents"]),
                         "variables": as_json(item["variables"]),
                         "add_generation_prompt": item["add_generation_prompt"],
                         "tokenizer_config": json.dumps(TOKENS), "now": NOW})
             for item in items]
    done = subprocess.run([program], input="\n".join(lines) + "\n", capture_output=True, text=True,
                          encoding="utf-8", check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def agree(wanted, got):
    if "text" in wanted:
        return got.get("text") == wanted["text"]
    if "raised" in wanted:
        return got.get("error", "").partition(": raised: ")[2] == wanted["raised"]
    return "error" in got and ": raised: " not in got["error"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--templates", type=pathlib.Path)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    chat_template_utils.datetime = Now
    if options.templates:
        templates = [(path.name, path.read_text(encoding="utf-8"))
                     for path in sorted(options.templates.glob("*.jinja"))]
    else:
        templates = sorted(published_templates())
        if len(templates) != TEMPLATES:
            raise SystemExit(f"{len(templates)} templates where {TEMPLATES} are published")
    items = list(cases())
    counts = {"text": 0, "raised": 0, "error": 0}
    wrong = []
    for name, template in templates:
        answers = ours(options.program, template, items)
        differing = 0
        for item, got in zip(items, answers, strict=True):
            wanted = judge(template, item)
            counts[next(iter(wanted))] += 1
            if agree(wanted, got):
                continue
            differing += 1
            if differing == 1 or options.verbose:
                short = {k: item[k] for k in ("name", "variables", "add_generation_prompt")}
                print(f"{name}: {short}, {len(item['messages'])} messages, tools "
                      f"{item['tools'] is not None}\n  wanted {wanted}\n  got    {got}")
        if differing:
            wrong.append(name)
            print(f"{name}: {differing} of {len(items)} differ")
    print(f"{len(templates) - len(wrong)} of {len(templates)} templates equal in all of "
          f"{len(items)} conversations each ({counts['text']} texts, {counts['raised']} raised, "
          f"{counts['error']} other errors)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
