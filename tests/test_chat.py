"""Chat templates: as transformers renders them, in a sandbox, with errors in one line."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from inferc.errors import InfercError
from inferc.runtime.chat import render

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = """{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
EXTENSIONS = """{%- set ns = namespace(last=none) %}
{% for message in messages %}
  {%- if message.role == 'system' %}{% continue %}{% endif %}
  {% set ns.last = message.role %}
{% generation %}{{ message.content }}{% endgeneration %}
{% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}{{ ns.last }} {{ tools | tojson(indent=2) if tools else "" }} {{ messages | tojson }}"""
TALK = [
    {"role": "user", "content": " hi <b>é</b> "},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "bye"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "it's <ok> & é", "parameters": {}}}]


@pytest.mark.parametrize("template", [CHATML, GEMMA, EXTENSIONS])
@pytest.mark.parametrize("prompt", [True, False])
def test_equals_transformers(template, prompt):
    ours = render(template, TALK, add_generation_prompt=prompt, bos_token="<bos>", tools=TOOLS)
    [theirs], _ = render_jinja_template(
        [TALK], chat_template=template, add_generation_prompt=prompt, bos_token="<bos>", tools=TOOLS
    )
    assert ours == theirs


def test_chatml():
    text = render(CHATML, [{"role": "user", "content": "hi"}])
    assert text == (
        "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_strftime_now():
    assert re.fullmatch(r"\d{4}", render("{{ strftime_now('%Y') }}", [])) and datetime.now().year >= 2024


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        ("{% if %}", [], "broken at line 1"),
        ("{{ raise_exception('no\nsystem role') }}", [], "refuses these messages: no system role"),
        (GEMMA, [{"role": "assistant", "content": "x"}], "roles must alternate"),
        ("{{ messages[0]['content'] + 'x' }}", [{"role": "user", "content": None}], "refuses"),
        ("{{ missing.name }}", [], "undefined"),
        ("{{ 1 // 0 }}", [], "refuses"),
        ("{{ messages.append(1) }}", [], "refuses"),
        ("{{ ''.__class__.__mro__ }}", [], "refuses"),
        ("{{ range(99999999) | list }}", [], "refuses"),
        ("{{ messages | tojson }}", [{"content": object()}], "refuses"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", [], "refuses"),
    ],
)
def test_failures_are_one_line(template, messages, words):
    with pytest.raises(InfercError, match=re.escape(words)) as caught:
        render(template, messages)
    assert "\n" not in str(caught.value)


def test_a_template_cannot_reach_python():
    with pytest.raises(InfercError):
        render("{{ raise_exception.__globals__['json'] }}", [])
