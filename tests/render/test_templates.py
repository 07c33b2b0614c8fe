"""Templates: built-in, inline, from files; what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import ALPACA, ALPACA_INPUT
from instdiff.errors import ConfigError
from instdiff.rendering.templates import TEMPLATES, ChatTemplate, TextTemplate, fill, template


def turn(spec: str, instruction: str, text: str = "", **options: bool) -> str:
    layout = template(spec)
    assert isinstance(layout, TextTemplate)
    return layout.turn(instruction, text, **options)


def test_alpaca() -> None:
    assert turn("alpaca", "Add.") == ALPACA.replace("{instruction}", "Add.")
    with_input = ALPACA_INPUT.replace("{instruction}", "Add.").replace("{input}", "1, 2")
    assert turn("alpaca", "Add.", "1, 2") == with_input
    assert turn("alpaca", "Add.", first=False) == "### Instruction:\nAdd.\n\n### Response:"
    assert turn("alpaca", "Add.", "1, 2", first=False) == "### Instruction:\nAdd.\n1, 2\n\n### Response:"


def test_the_published_prompt_ignores_the_input() -> None:
    assert turn("alpaca_no_input", "Add.", "1, 2") == ALPACA.replace("{instruction}", "Add.")


def test_plain_and_direct() -> None:
    assert turn("plain", "Add.") == "Add.\n"
    assert turn("plain", "Add.", "1, 2") == "Add.\n1, 2\n"
    assert turn("direct", "Add.") == "Add."
    assert turn("direct", "Add.", "1, 2") == "Add.\n1, 2"  # nothing of a row is lost


def test_published_names_mean_what_their_author_meant() -> None:
    assert template("DIRECT_PROMPT") is TEMPLATES["direct"]
    assert template("DEFAULT_PROMPT") is TEMPLATES["alpaca"]
    assert turn("DIRECT_PROMPT", "Add.") == "Add."


def test_inline() -> None:
    assert turn("Q: {instruction}\nA:", "Add.") == "Q: Add.\nA:"
    assert turn("Q: {instruction}\nA:", "Add.", "1, 2") == "Q: Add.\n1, 2\nA:"
    assert turn("{input} - {instruction}", "Add.", "1, 2") == "1, 2 - Add."
    assert turn("{{json}} {instruction}", "Add.") == "{json} Add."
    assert template("chat") == ChatTemplate()


@given(st.text(alphabet="{}ab!:0 \n", max_size=12), st.text(alphabet="{}ab!:0 ", max_size=6))
def test_braces_in_data_are_never_parsed(instruction: str, text: str) -> None:
    assert fill("<{instruction}|{input}>", instruction=instruction, input=text) == f"<{instruction}|{text}>"
    assert turn("direct", instruction) == instruction
    assert turn("alpaca", instruction).endswith(f"### Instruction:\n{instruction}\n\n### Response:")


def test_a_row_that_names_placeholders_stays_as_it_is() -> None:
    assert turn("alpaca", "{input}", "{instruction}").count("{input}") == 1
    assert "### Instruction:\n{input}\n\n### Input:\n{instruction}\n" in turn("alpaca", "{input}", "{instruction}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("alpacca", "unknown template 'alpacca'; did you mean 'alpaca'?"),
        ("MY_PROMPT", "unknown template 'MY_PROMPT'"),
        ("Answer this:", "template 'Answer this:' has no {instruction}, so the model would not see the instruction"),
        ("{question}", "template '{question}' has no {instruction}"),
        ("{instruction} {inputs}", "template 'inline': 'prompt' has {inputs}; did you mean 'input'?"),
        ("{instruction} {", "template 'inline', 'prompt': "),
        ("nowhere.yaml", "template file 'nowhere.yaml': No such file or directory"),
    ],
)
def test_templates_that_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        template(spec)
    assert str(error.value).startswith(message)


def test_a_stray_brace_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"write a literal brace twice, as '\{\{'"):
        template("{instruction} }")


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def written(tmp_path: Path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def test_yaml_and_json_files(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "mine.yaml",
        'prompt: "Q: {instruction}\\nA:"\nprompt_with_input: "{input}\\nQ: {instruction}\\nA:"\nseparator: "\\n--\\n"\n'
        'later: "Q+: {instruction}"\nsystem: "[{system}] "\n',
    )
    layout = template(path)
    assert isinstance(layout, TextTemplate) and (layout.name, layout.separator) == ("mine", "\n--\n")
    assert layout.turn("a", "") == "Q: a\nA:" and layout.turn("a", "b") == "b\nQ: a\nA:"
    assert layout.turn("a", "", first=False) == "Q+: a"
    assert turn(written(tmp_path, "mine.json", '{"prompt": "J {instruction}"}'), "x") == "J x"


def test_text_and_jinja_files(tmp_path: Path) -> None:
    assert turn(written(tmp_path, "mine.txt", "Do: {instruction}\n"), "x") == "Do: x\n"
    assert template(written(tmp_path, "mine.jinja", "{{ messages }}")) == ChatTemplate("mine", "{{ messages }}")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", 'prompt: "{instruction}"\nseperator: x', "unknown field 'seperator'; did you mean 'separator'?"),
        ("a.yaml", 'prompt: "no instruction"', "'prompt' has no {instruction}, so the model would not see it"),
        ("a.yaml", 'system: "{system}"', "needs a mapping with 'prompt'; known fields: name, prompt,"),
        ("a.yaml", "- 1", "needs a mapping with 'prompt'"),
        ("a.yaml", "prompt: [", "a.yaml': "),
        ("a.yaml", 'prompt: "{instruction}"\nignore_input: "yes"', "'ignore_input' must be bool, not 'yes'"),
        ("a.yaml", 'prompt: "{instruction}"\nprompt_with_input: "{instruction}"', "'prompt_with_input' has no {input}"),
        ("a.yaml", 'prompt: "{instruction}"\nsystem: "{sys}"', "'system' has no {system}"),
        ("a.txt", "no placeholder", "template 'a': 'prompt' has no {instruction}"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        template(written(tmp_path, name, text))
    assert message in str(error.value)
