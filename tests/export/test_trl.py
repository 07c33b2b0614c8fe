"""TRL takes what is exported for it, and learns the tokens that were scored: SFTTrainer's rows against ours."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import CHAT_PLAIN
from instdiff.core import ModelRef
from instdiff.data import Pool, Turns, load
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.errors import ConfigError
from instdiff.rendering.renderer import training_rows
from instdiff.rendering.templates import ChatTemplate, Template, template
from instdiff.selection.export.asked import Asked, Exported
from instdiff.selection.export.export import export
from instdiff.selection.export.trl import trl

from .rows import CALLS, FLAGGED, INPUTS, SEVERAL, SINGLE, THOUGHT, TOOLS_USED, ids, of_trl, read, record, write

pytestmark = pytest.mark.filterwarnings("ignore")
CHAT_LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepared(done: Exported, folder: Path, **options: Any) -> Any:
    """What the printed command does, in this process: the trainer with its rows."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    values = yaml.safe_load(done.files[-1].read_text(encoding="utf-8"))
    (data,) = values["datasets"]
    rows = load_dataset(**data, cache_dir=str(folder / "cache"))
    known = {field.name for field in fields(SFTConfig)}
    given = {name: value for name, value in values.items() if name in known}
    short = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    quiet = {"report_to": [], "use_cpu": True, "save_strategy": "no", "bf16": False, "disable_tqdm": True}
    args = SFTConfig(**given | short | quiet | options)
    return SFTTrainer(model=values["model_name_or_path"], args=args, train_dataset=rows)


def learnt(trainer: Any, row: int) -> str:
    """The text whose tokens count."""
    labels = trainer.train_dataset[row]["labels"]
    return str(trainer.processing_class.decode([token for token in labels if token >= 0]))


def assert_same(trainer: Any, pool: Pool, model: Path, layout: Template, max_length: int = 200) -> None:
    """Each row of TRL begins with our ids, its collator's labels are our targets, and nothing else is learnt."""
    tokenizer = load_tokenizer(resolve(ModelRef(str(model))))
    ours = training_rows(pool, tokenizer, layout, max_length)
    there = [at for at in range(len(pool)) if ours.reason[at] is None]
    theirs = trainer.train_dataset
    assert len(theirs) == len(there) > 0
    for row, at in zip(theirs, there, strict=True):
        batch = trainer.data_collator([row])
        seen, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        wanted = ours.ids[at].tolist()
        target = ours.target[ours.ids.offsets[at] : ours.ids.offsets[at + 1]]
        assert seen[: len(wanted)] == wanted
        assert labels[: len(wanted)] == [i if t else -100 for i, t in zip(wanted, target, strict=True)]
        assert set(labels[len(wanted) :]) <= {-100}


@pytest.mark.parametrize(
    ("name", "single", "several"),
    [
        ("qwen3", "tokens", "tokens"),
        ("llama3", "prompt_completion", "messages"),
        ("gemma3", "tokens", "tokens"),
        ("phi3", "prompt_completion", "tokens"),
        ("qwen2_5", "tokens", "tokens"),
        ("lfm2_2_5", "tokens", "tokens"),
    ],
)
def test_trl_learns_what_was_scored(tmp_path: Path, name: str, single: str, several: str) -> None:
    model = of_trl(name, tmp_path)
    for number, (rows, layout) in enumerate(
        [(SINGLE, single), (SEVERAL, several), (THOUGHT, single), ([*SEVERAL, *THOUGHT, *TOOLS_USED], several)]
    ):
        source = write(tmp_path / f"{number}.jsonl", rows)
        record(source, template="chat", model=str(model), max_length=400)
        done = export(source, "trl", tmp_path / "out")
        assert done.layout == layout
        trainer = prepared(done, tmp_path / str(number))
        assert_same(trainer, load(source), model, ChatTemplate(), 400)
        assert trainer.args.max_length == 400
        assert trainer.args.assistant_only_loss == (done.layout == "messages")


@pytest.mark.parametrize(
    "how", [Turns("last"), Turns("all+calls"), Turns(reasoning="context"), Turns(reasoning="drop")]
)
def test_options_reach_trl(tmp_path: Path, how: Turns) -> None:
    model = of_trl("qwen3", tmp_path)
    pool = replace(load([*SEVERAL, *THOUGHT, *TOOLS_USED, *FLAGGED]), turns=how)
    facts = {"settings": {"max_length": 300}, "models": {"base": {"where": str(model), "template": "chat"}}}
    done = trl(Asked(pool, facts, tmp_path / "out", "mine", model=str(model), log=lambda line: None))
    assert_same(prepared(done, tmp_path), pool, model, ChatTemplate(), 300)


def test_a_template_file_goes_along(tmp_path: Path, models: dict[str, Path]) -> None:
    jinja = tmp_path / "mine.jinja"
    jinja.write_text(CHAT_LLAMA)
    source = write(tmp_path / "selected.jsonl", SINGLE)
    record(source, template=str(jinja), model=str(models["llama"]), max_length=50)
    done = export(source, "trl", tmp_path / "out", name="mine")
    config = yaml.safe_load(done.files[-1].read_text())
    assert config["chat_template_path"] == (tmp_path / "out" / "mine.jinja").as_posix()
    assert Path(config["chat_template_path"]).read_text() == CHAT_LLAMA
    assert done.layout == "prompt_completion" and config["max_length"] == 50
    lines: list[str] = []
    record(source, template=str(jinja), model=str(models["llama"]), template_fingerprint="of another")
    export(source, "trl", tmp_path / "out", name="mine", log=lines.append)
    assert lines[-1] == f"template '{jinja}' has changed since these rows were scored"
    record(source, template=str(jinja), model=str(models["llama"]), max_length=50)
    done = export(source, "trl", tmp_path / "out", name="mine")
    trainer = prepared(done, tmp_path)
    assert_same(trainer, load(source), models["llama"], ChatTemplate("mine", CHAT_LLAMA), 50)
    assert learnt(trainer, 0) == "It is Lima.<|im_end|>"


def test_the_date_is_that_of_the_run(tmp_path: Path, models: dict[str, Path]) -> None:
    jinja = tmp_path / "dated.jinja"
    jinja.write_text("{{ strftime_now('%d %b %Y') }} " + CHAT_PLAIN)
    source, model = write(tmp_path / "selected.jsonl", SINGLE), str(models["llama"])
    record(source, template=str(jinja), model=model, template_date="2025-03-04")
    done = export(source, "trl", tmp_path / "out")
    assert done.layout == "tokens"  # TRL would write today's
    trainer = prepared(done, tmp_path)
    assert trainer.processing_class.decode(trainer.train_dataset[0]["input_ids"]).startswith("04 Mar 2025 ")


def test_rows_that_are_cut_are_cut_alike(tmp_path: Path, models: dict[str, Path]) -> None:
    source = write(tmp_path / "selected.jsonl", SEVERAL)
    model = str(models["llama"])
    for limit in (30, 60):
        record(source, template="chat", model=model, max_length=limit)
        done = export(source, "trl", tmp_path / str(limit))
        assert_same(prepared(done, tmp_path / str(limit)), load(source), models["llama"], ChatTemplate(), limit)


def test_tokens_keep_the_conversation(tmp_path: Path, models: dict[str, Path]) -> None:
    rows = [*SEVERAL, *THOUGHT, *TOOLS_USED, *FLAGGED]
    source = write(tmp_path / "selected.jsonl", rows)
    done = export(source, "trl", tmp_path / "out", model=str(models["llama"]), template="chat")
    assert done.layout == "tokens" and done.changed == 0
    assert ids(done.files[0]) == ids(source)
    first = read(done.files[0])[0]
    assert len(first["input_ids"]) <= len(first["labels"]) and first["labels"][0] == -100


def test_tokens_of_rows_without_any_are_counted(tmp_path: Path, models: dict[str, Path]) -> None:
    lines: list[str] = []
    quiet = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]}]
    source, model = write(tmp_path / "selected.jsonl", [*SINGLE, *quiet]), str(models["llama"])
    done = export(source, "trl", tmp_path / "out", model=model, layout="tokens", log=lines.append)
    assert (done.rows, done.left_out) == (2, 1)
    assert "1 rows have no token to learn and are left out: empty_response 1" in lines
    source = write(tmp_path / "quiet.jsonl", quiet)
    with pytest.raises(ConfigError, match="none of the 1 rows has a token to learn"):
        export(source, "trl", tmp_path / "quiet", model=model, layout="tokens")
    with pytest.raises(ConfigError, match="layout 'tokens' needs the tokenizer"):
        export(source, "trl", tmp_path / "none", layout="tokens")


def test_text_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "selected.jsonl", INPUTS)
    done = export(source, "trl", tmp_path / "out", model="builtin:tiny")
    trainer = prepared(done, tmp_path)
    trainer.train()
    rows = read(done.files[0])
    assert rows[3]["completion"] == "12" and rows[3]["input"] == "5 and 7\n"
    assert trainer.state.global_step == 2 and trainer.state.log_history[-1]["train_loss"] > 0
    assert learnt(trainer, 3).removesuffix("</s>").strip() == "12"


def test_several_responses_under_a_text_template_are_tokens(tmp_path: Path, models: dict[str, Path]) -> None:
    source = write(tmp_path / "selected.jsonl", SEVERAL)
    record(source, template="alpaca", model=str(models["llama"]))
    done = export(source, "trl", tmp_path / "out")
    assert done.layout == "tokens" and ids(done.files[0]) == ids(source)
    assert_same(prepared(done, tmp_path), load(source), models["llama"], template("alpaca"))


def test_messages_train(tmp_path: Path, models: dict[str, Path]) -> None:
    done = export(write(tmp_path / "calls.jsonl", CALLS), "trl", tmp_path / "out", model=str(models["llama"]))
    trainer = prepared(done, tmp_path)
    trainer.train()
    assert trainer.state.global_step == 2 and "There." in learnt(trainer, 2)
    assert trainer.processing_class.chat_template == CHAT_PLAIN


def test_a_named_layout_that_learns_otherwise_is_said(tmp_path: Path, models: dict[str, Path]) -> None:
    source, model = write(tmp_path / "selected.jsonl", SINGLE), str(models["llama"])
    done = export(source, "trl", tmp_path / "out", model=model, layout="prompt_completion")
    assert done.layout == "prompt_completion"
    assert "TRL learns other tokens of the first rows than were scored; --layout tokens has those" in done.say


@pytest.mark.parametrize("layout", ["prompt_completion", "messages", "tokens", "text"])
def test_trl_reads_the_file_from_another_folder(
    tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
    from trl.scripts.utils import DatasetMixtureConfig

    source = write(tmp_path / "selected.jsonl", SINGLE)
    spec = "alpaca" if layout == "text" else str(tmp_path / "mine.jinja")
    (tmp_path / "mine.jinja").write_text(CHAT_LLAMA)
    (tmp_path / "models").symlink_to(models["llama"].parent)
    record(source, template=spec, model="models/llama", max_length=150, dtype="float32")
    monkeypatch.chdir(tmp_path)
    done = export("selected.jsonl", "trl", "out", layout=layout)
    assert done.layout == layout and done.command == "trl sft --config out/selected.trl.yaml"
    config = done.files[-1].absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    _, args, model, mixture = parser.parse_args_and_config(["--config", str(config), "--use_cpu", "true"])
    assert Path(mixture.datasets[0].data_files).is_file() and Path(model.model_name_or_path).is_dir()
    assert Path(args.output_dir) == tmp_path / "out" / "selected-sft"
    assert layout == "text" or Path(args.chat_template_path or "").read_text() == CHAT_LLAMA
    assert (args.max_length, args.num_train_epochs, args.learning_rate) == (150, 3, 2e-5)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 64
    assert args.warmup_steps == 0.05 and args.lr_scheduler_type == "cosine"
    said = config.read_text().splitlines()[:2]
    assert said[0] == f"# Scored with: models/llama, template {spec}, max_length 150, float32."
    assert said[1] == "# Epochs, rate and batch are the defaults of instdiff: 64 rows a step, on one device."
