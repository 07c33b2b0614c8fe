"""Templates that would run without end, or write without end: a sentence, in bounded steps."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from helpers import CHAT_PLAIN, make_tokenizer
from instdiff.core import Prompted
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer, compile_template
from instdiff.rendering import bounded
from instdiff.rendering.bounded import EndlessTemplateError, render_template
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import ChatTemplate

TALK = [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}"
    + "x" * 1000
    + "{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursion": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
    "doubling": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "adding": "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a list": "{% set n = namespace(x=[1, 2]) %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "squares": "{% set n = namespace(x=10) %}{% for a in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "times": "{{ messages[0].content * 10 ** 12 }}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "width": "{{ '%099999999999d' % messages|length }}",
    "star": "{{ '%*d' % (10 ** 11, 1) }}",
    "format": "{{ '{:99999999999}'.format(1) }}",
    "ljust": "{{ messages[0].content.ljust(10 ** 11) }}",
    "center": "{{ messages[0].content|center(10 ** 11) }}",
    "constant": "{{ 'x'|center(99999999999) }}",
    "replace": "{{ ('a' * 99999).replace('a', 'a' * 99999) }}",
    "filter": "{{ ('a' * 99999)|replace('a', 'a' * 99999) }}",
    "join": "{{ (['a' * 99999] * 99999)|join }}",
    "glue": "{{ ('a' * 99999).join(['a'] * 99999) }}",
    "indent": "{{ ('\n' * 999999)|indent(999999) }}",
    "mapped": "{{ range(99999)|map('string')|map('center', 60000000)|list }}",
    "blocks": "{% set x %}{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endset %}",
}


@pytest.mark.parametrize("jinja", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_a_sentence(jinja: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "STEPS", 100_000)
    with pytest.raises(EndlessTemplateError, match="the chat template comes to no end: for one conversation it "):
        render_template(compile_template(jinja), {"messages": TALK})


def test_what_ends_is_written_as_the_library_writes_it() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    jinja = (
        "{% macro say(m, end='!') %}{{ m.role ~ ': ' ~ m.content|trim }}{{ end }}{% endmacro %}\n"
        "{%- set n = namespace(last=0, seen=[]) %}"
        "{% for m in messages[::-1] if m.role != 'x' %}{% set n.last = n.last + loop.revindex %}"
        "{{ say(m, end='%s-%d' % (loop.length, n.last)) }}{{ ', ' if not loop.last else '' }}"
        "{% if loop.index > 5 %}{% break %}{% endif %}{% else %}nobody{% endfor %}"
        "{% for k, v in {'a': none, 'b': true}.items() recursive %}{{ k }}={{ v }}{{ undefined }};{% endfor %}"
        "{{ messages|tojson(indent=2) }}{{ 'x'.join(['a', 'b']) }}{{ 'a-b'.split('-')[0] * 3 }}{{ 7 ** 2 % 5 }}"
        "{% generation %}{{ '<' + 'é'|upper + '>' }}{% endgeneration %}{{ [1, 2]|sum }}{{ '{:>5}'.format('a') }}"
    )
    for talk in (TALK, TALK * 9, []):
        expected = _compile_jinja_template(jinja).render(messages=talk)
        assert render_template(compile_template(jinja), {"messages": talk}) == expected


def test_each_rendering_has_its_own_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "STEPS", 100)
    compiled = compile_template("{% for a in messages %}{{ a }}{% endfor %}")
    found = list[Any]()

    def work() -> None:
        for _ in range(20):
            found.append(len(render_template(compiled, {"messages": "x" * 90})))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [90] * 80
    with pytest.raises(EndlessTemplateError, match="takes more than 100 steps"):
        render_template(compiled, {"messages": "x" * 101})


def rendered(tmp_path: Path, jinja: str, bad: int) -> Renderer:
    rows = [{"question": "loop" if n < bad else "q", "answer": f"a{n}"} for n in range(10)]
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Renderer(load(path), HFTokenizer(make_tokenizer(chat=jinja), 512))


def test_rows_without_end_are_unrenderable_and_the_third_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "STEPS", 5000)
    loop = "{% if m.content == 'loop' %}{% for a in range(9999) %}{% endfor %}{% endif %}"
    turns = f"{{% for m in messages %}}{loop}{{% endfor %}}"
    jinja = turns + CHAT_PLAIN
    rows = rendered(tmp_path, jinja, 2).rows(Prompted(), ChatTemplate(), 256)
    assert rows.reason.tolist() == ["unrenderable"] * 2 + [None] * 8
    with pytest.raises(EndlessTemplateError, match="takes more than 5,000 steps; give another with --template"):
        rendered(tmp_path, jinja, 3).rows(Prompted(), ChatTemplate(), 256)


def test_a_template_that_never_ends_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "STEPS", 5000)
    with pytest.raises(EndlessTemplateError, match="comes to no end"):
        rendered(tmp_path, ENDLESS["loops"], 0).rows(Prompted(), ChatTemplate(), 256)
