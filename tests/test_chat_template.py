"""Chat templates: what transformers makes of them, and what stops a hostile one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import softgate.text.template
from gguf_files import minimal, write_file
from softgate.checkpoint import CheckpointError, open_checkpoint, save_checkpoint
from softgate.text import Tokenizer
from softgate.text.template import render
from test_text import tokenizer_json
from transformers.utils.chat_template_utils import render_jinja_template
from weights import smollm2  # noqa: F401

MARKERS = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nAnswer in one line.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
HEADERS = """\
{{ bos_token }}
{% set opening = "You know the day." %}
{% if messages and messages[0]['role'] == 'system' %}
    {% set opening = messages[0]['content'] | trim %}
    {% set messages = messages[1:] %}
{% endif %}
<|head|>system<|/head|>

Today: {{ strftime_now("%d %b %Y") if day is not defined else day }}
{{ opening }}<|eot|>
{% if tools is not none and tools %}
You may call:
{% for tool in tools %}
{{ tool | tojson(indent=2) }}
{% endfor %}
{% endif %}
{% for message in messages %}
{% generation %}
<|head|>{{ message.role }}<|/head|>

{{ message.content | trim }}<|eot|>
{% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}<|head|>assistant<|/head|>

{% endif %}
"""
TURNS = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turn here.') }}
{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Turns must alternate.') }}
{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
<start>{{ role }}
{{ message['content'] | trim }}<end>
{% endfor %}
{% if add_generation_prompt %}<start>model
{% endif %}
"""
BRACKETS = """\
{% macro turn(text) -%}[INST] {{ text }} [/INST]{%- endmacro %}
{% set ns = namespace(system='', count=0) %}
{% for message in messages %}
{% if message.role == 'system' %}
{% set ns.system = message.content ~ '\\n\\n' %}{% continue %}
{% endif %}
{% set ns.count = ns.count + 1 %}
{% if message.role == 'user' %}
{{ turn(ns.system ~ message.content) }}{% set ns.system = '' %}
{% elif message.tool_calls is defined %}
[CALLS]{{ message.tool_calls | map(attribute='function') | list | tojson }}
{% else %} {{ message.content }}{{ eos_token }}
{% endif %}
{% if ns.count > 8 %}{% break %}{% endif %}
{% endfor %}
{{ ns.count }}{{ unk_token is defined }}{{ ''.join(['<', '>']) }}{{ "é & <b>" | tojson }}
"""
TEMPLATES = {"markers": MARKERS, "headers": HEADERS, "turns": TURNS, "brackets": BRACKETS}
USER = {"role": "user", "content": "  Why is 织 woven? <b>&'\"</b> \U0001f9f5 "}
ANSWER = {"role": "assistant", "content": "Because.\n"}
SYSTEM = {"role": "system", "content": "Be brief.\n"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, None, True]}}}],
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "question": [USER],
    "answered": [USER, ANSWER, USER],
    "system": [SYSTEM, USER, ANSWER],
    "many": [USER, ANSWER] * 6,
    "call": [USER, CALL],
    "none": [],
}
TOOL = {"type": "function", "function": {"name": "f", "description": "é <", "parameters": {}}}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def both(template: str, messages: list[dict[str, Any]], **variables: Any) -> tuple[Any, Any]:
    """What transformers and we make of a template; an exception is its type."""
    kept = [{key: value for key, value in m.items() if value is not None} for m in messages]
    variables = {"tools": None, "documents": None} | SPECIAL | variables
    expected: Any
    try:
        ((expected,), _) = render_jinja_template([kept], chat_template=template, **variables)
    except Exception:
        expected = ValueError
    found: Any
    try:
        found = render(template, {"messages": kept} | variables)
    except ValueError:
        found = ValueError
    return found, expected


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers(name: str, chat: str) -> None:
    for options in ({"add_generation_prompt": True}, {"tools": [TOOL]}):
        found, expected = both(TEMPLATES[name], CHATS[chat], **options)
        assert found == expected
        assert isinstance(found, str) or (name, chat) in {
            ("markers", "call"), ("headers", "call"), ("turns", "system"), ("turns", "call"),
            ("turns", "none"),
        }  # fmt: skip


@pytest.mark.parametrize(
    "template",
    [
        "{{ [1, 2]|batch(2)|list }} {{ range(3)|list }} {{ dict(a=1).items()|list }}",
        "{{ messages|length }} {{ messages|tojson(ensure_ascii=True, sort_keys=True) }}",
        "{{ 'a'.upper() }}{{ 'x' * 3 }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 'abc'[::-1] }}",
        "{% set ns = namespace({'a': 1}, b=2) %}{% set ns.a = 3 %}{{ ns.a }}{{ ns.b }}",
        "{{ cycler('a', 'b').next() }}{{ joiner(',')() }}{{ undefined_name }}|{{ x is defined }}",
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(_a=1) %}",
        "{% set ns = namespace() %}{% set ns._a = 1 %}",
        "{% include 'x' %}",
        "{{ 1 / 0 }}",
        "{% if %}",
        "  {%- if true -%}  a\n  {%- endif %}\n\n  {# note #}\nb",
    ],
)
def test_corners_as_transformers(template: str) -> None:
    found, expected = both(template, CHATS["answered"])
    assert found == expected


# From checkpoints


def test_real_template(smollm2: Path) -> None:  # noqa: F811
    with open_checkpoint(smollm2) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    assert tokenizer is not None
    assert tokenizer.chat_template is not None
    for messages in (CHATS["question"], CHATS["answered"], CHATS["system"]):
        for prompt in (True, False):
            found = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)
            _, expected = both(
                tokenizer.chat_template,
                messages,
                add_generation_prompt=prompt,
                bos_token="<|im_start|>",
                eos_token="<|im_end|>",
            )
            assert found == expected
            ids = tokenizer.encode([found], add_special_tokens=False)[0].ids
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(2) == found.count("<|im_end|>")


def folder_with(path: Path, config: Any, template: bytes | None = None) -> Path:
    files: dict[str, Path | bytes] = {"tokenizer.json": json.dumps(tokenizer_json()).encode()}
    if config is not None:
        files["tokenizer_config.json"] = json.dumps(config).encode()
    if template is not None:
        files["chat_template.jinja"] = template
    save_checkpoint(path, {}, {"x": np.zeros(1)}, files)
    return path


def tokenizer_of(path: Path) -> Tokenizer:
    with open_checkpoint(path) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    assert tokenizer is not None
    return tokenizer


def test_where_a_template_is_found(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d{{ bos_token }}"}, {"name": "rag", "template": "r"}]
    special = {"bos_token": {"content": "[CLS]", "lstrip": False}, "eos_token": "[SEP]"}
    cases = [
        ({"chat_template": "s{{ eos_token }}"} | special, None, "s[SEP]"),
        ({"chat_template": named} | special, None, "d[CLS]"),
        ({"chat_template": "s"}, b"j\xed\x95\x9c", "j한"),
        (None, b"j", "j"),
    ]
    for index, (config, template, expected) in enumerate(cases):
        tokenizer = tokenizer_of(folder_with(tmp_path / str(index), config, template))
        assert tokenizer.apply_chat_template([USER]) == expected
    assert tokenizer_of(tmp_path / "0").bos_token_id == 1
    assert tokenizer_of(tmp_path / "0").eos_token_id == 2
    assert tokenizer_of(tmp_path / "0").pad_token_id is None
    for config in (None, {}, {"chat_template": None}, {"chat_template": named[1:]}):
        tokenizer = tokenizer_of(folder_with(tmp_path / "without", config))
        with pytest.raises(ValueError, match="the checkpoint has no chat template"):
            tokenizer.apply_chat_template([USER])


def test_saved_files_read_back(tmp_path: Path) -> None:
    config = {"chat_template": "한{{ bos_token }}", "bos_token": "[CLS]", "pad_token": "[PAD]"}
    tokenizer = tokenizer_of(folder_with(tmp_path / "first", config))
    save_checkpoint(tmp_path / "second", {}, {"x": np.zeros(1)}, tokenizer.to_files())
    again = tokenizer_of(tmp_path / "second")
    assert again.special_tokens == tokenizer.special_tokens == {"bos": "[CLS]", "pad": "[PAD]"}
    assert again.apply_chat_template([USER]) == "한[CLS]"
    assert again.encode(["the warp"]) == tokenizer.encode(["the warp"])


@pytest.mark.parametrize(
    ("config", "template", "message"),
    [
        ([], None, "tokenizer_config.json: expected a JSON object"),
        ({"bos_token": 1}, None, "tokenizer_config.json: bos_token is 1"),
        ({"bos_token": {"content": [1]}}, None, "tokenizer_config.json: bos_token is .1."),
        ({"chat_template": 5}, None, "tokenizer_config.json: chat_template is 5"),
        ({}, b"\xff", "chat_template.jinja is not UTF-8"),
    ],
)
def test_broken_files(config: Any, template: bytes | None, message: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", config, template)
    with pytest.raises(CheckpointError, match=message):
        tokenizer_of(folder)


def test_template_of_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    metadata, tensors = minimal()
    metadata |= {"tokenizer.chat_template": 1, "tokenizer.ggml.tokens": ["a"]}
    path = write_file(tmp_path / "model.gguf", "llama", metadata, tensors)
    with pytest.raises(CheckpointError, match=r"tokenizer\.chat_template is not a string"):
        tokenizer_of(path)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages is a str, expected a sequence of mappings"),
        (None, "messages is a NoneType, expected a sequence of mappings"),
        ({"role": "user"}, "messages is a dict, expected a sequence of mappings"),
        (["hi"], r"messages\[0\] is a str, expected a mapping"),
        ([USER, {"role": {1, 2}}], "a chat template takes JSON values: .*set"),
        ([USER, {"content": b"x"}], "a chat template takes JSON values: .*bytes"),
    ],
)
def test_what_is_no_chat(messages: Any, message: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(folder_with(tmp_path / "model", None, b"x"))
    with pytest.raises(TypeError, match=message):
        tokenizer.apply_chat_template(messages)


def test_refused_messages() -> None:
    with pytest.raises(ValueError, match=r"refuses the messages: Turns must alternate\.$") as error:
        render(TURNS, {"messages": [USER, USER], "bos_token": ""})
    assert not isinstance(error.value, CheckpointError)


# Hostile templates

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLE = (
    "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
)
ENDLESS = {
    "loops": LOOP,
    "power": "{{ 9 ** (9 ** 9) }}",
    "shift": "{{ (2 ** 99999) ** 99999 }}",
    "lipsum": "{% for i in range(99999) %}{{ lipsum(n=999)|length }}{% endfor %}",
    "growing list": "{% set n = namespace(l=[0]) %}{% for i in range(99999) %}"
    "{% set n.l = (n.l + n.l)[:100000] %}{% endfor %}",
}
HUGE = {
    "doubling": DOUBLE,
    "product": "{{ 'x' * 9999999999 }}",
    "list": "{{ [0] * 99999999999 }}",
    "center": "{{ 'x'|center(9999999999) }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "method": "{{ 'x'.ljust(9999999999)|length }}",
    "indent": "{{ [[1]]|tojson(indent=9999999999)|length }}",
    "replace": "{{ ('x' * 999999).replace('x', 'x' * 999999)|length }}",
}
FAILING = {
    "output": ("{{ 'x' * 99999999 }}", "it makes 99999999 characters, at most 16777216 are"),
    "range": ("{% for i in range(999999999) %}{% endfor %}", "OverflowError: Range too big"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "nesting": ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "RecursionError|ends its process"),
    "blocks": ("{% if 1 %}" * 9999, "RecursionError|ends its process|Error"),
    "class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "function": ("{{ lipsum.__globals__['os'] }}", "SecurityError"),
    "format": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "SecurityError"),
    "changing": ("{{ messages.append(1) }}", "SecurityError"),
    "import": ("{% import 'os' as os %}", "no loader for this environment"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "missing": ("{{ messages[0].tool.name }}", "UndefinedError"),
    "zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
}


@pytest.mark.skipif(os.name != "posix", reason="limits on CPU time and memory are POSIX's")
@pytest.mark.parametrize("name", ENDLESS)
def test_endless_template(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softgate.text.template, "CPU_SECONDS", 1)
    before = time.monotonic()
    with pytest.raises(CheckpointError, match=r"runs for more than 1 s|takes too much memory"):
        render(ENDLESS[name], {"messages": []})
    assert time.monotonic() - before < softgate.text.template.WALL_SECONDS


@pytest.mark.skipif(os.name != "posix", reason="limits on CPU time and memory are POSIX's")
@pytest.mark.parametrize("name", HUGE)
def test_huge_template(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"the chat template fails: it takes too much memory"):
        render(HUGE[name], {"messages": []})


def test_clock_ends_what_the_system_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softgate.text.template, "CPU_SECONDS", 1000)
    monkeypatch.setattr(softgate.text.template, "WALL_SECONDS", 1)
    with pytest.raises(CheckpointError, match="runs for more than 1 s"):
        render(LOOP, {"messages": []})


@pytest.mark.parametrize("name", FAILING)
def test_failing_template(name: str) -> None:
    template, message = FAILING[name]
    with pytest.raises(CheckpointError, match=f"the chat template .*({message})") as error:
        render(template, {"messages": [USER]})
    assert len(str(error.value)) < 1100
