"""The trees of the commands: published keys, models by role, methods by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instdiff.config.base import load
from instdiff.config.commands import (
    PipelineConfig,
    SampleConfig,
    ScoreConfig,
    SelectConfig,
    TrainConfig,
    parse_methods,
    parse_models,
    parse_pairs,
)
from instdiff.config.methods import make_method, make_methods, short_name
from instdiff.core import Folds, Method
from instdiff.core.signals import CrossFitted
from instdiff.errors import ConfigError
from instdiff.methods import IFD, METHODS, InstructDiff, Learnability, Random, SelectiveDPO


def refused(kind: Any, *overrides: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(kind, None, options, overrides)
    return str(caught.value)


# ── published keys ────────────────────────────────────────────────────────────────────────────────────────────────────


def written(folder: Path, text: str) -> Path:
    path = folder / "published.yaml"
    path.write_text(text)
    return path


def test_sample(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "seed: 42\ndata_path: data/train_medmcqa_alpaca_10k.jsonl\noutput_path: runs/med_1k_100.jsonl\n"
        "max_samples: 100\nlimit: 1000\n",
    )
    found = load(SampleConfig, file, {})
    assert found == SampleConfig(
        data="data/train_medmcqa_alpaca_10k.jsonl", output="runs/med_1k_100.jsonl", max_samples=100, limit=1000, seed=42
    )
    assert load(SampleConfig, file, {"max_samples": 5}).max_samples == 5


def test_score(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "seed: 42\ndata_path: d.jsonl\nmodel_path: models/Llama-2-7b-hf\noutput_path: runs/score_med_llama2.jsonl\n"
        "max_samples: 100\ninstruction_key: instruction\ninput_key: input\nresponse_key: response\n"
        "prompt_template: |-\n  ### Instruction:\n  {instruction}\n\n  ### Response:\n",
    )
    found = load(ScoreConfig, file, {"method": ["perplexity,entropy"]})
    assert found.model == {"base": "models/Llama-2-7b-hf"}
    assert found.output == "runs/score_med_llama2.jsonl" and found.data == "d.jsonl"
    assert found.limit == 100  # the first ones, as published
    assert found.template == "### Instruction:\n{instruction}\n\n### Response:"
    assert found.method == {"perplexity": {}, "entropy": {}}
    assert found.mapping() is None  # the usual names: left to the format, which knows `output` too


def test_columns_from_published_keys_or_a_map() -> None:
    assert load(ScoreConfig, None, {"response_key": "output"}).mapping() is None
    assert load(ScoreConfig, None, {"instruction_key": "q", "response_key": "a"}).mapping() == {
        "instruction": "q",
        "response": "a",
    }
    assert load(ScoreConfig, None, {"map": "instruction=q, response=a"}).mapping() == {
        "instruction": "q",
        "response": "a",
    }
    assert load(ScoreConfig, None, {"map": {"messages": "chat"}}).mapping() == {"messages": "chat"}
    assert load(ScoreConfig, None, {}).mapping() is None


def test_train(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "seed: 42\ntrain:\n  model_name_or_path: models/Llama-2-7b-hf\n  data_path: runs/med_1k_100.jsonl\n"
        "  output_dir: runs/trained/med_sft_100\n  model_max_length: 512\n  per_device_train_batch_size: 1\n"
        "  num_train_epochs: 1\n  learning_rate: 2e-5\n  global_batch_size: 1\n  mode: sft\n",
    )
    part = load(TrainConfig, file, {}).train
    assert part.model_name_or_path == "models/Llama-2-7b-hf" and part.data_path == "runs/med_1k_100.jsonl"
    assert part.output_dir == "runs/trained/med_sft_100"
    assert (part.model_max_length, part.per_device_train_batch_size, part.global_batch_size) == (512, 1, 1)
    assert part.num_train_epochs == 1 and part.learning_rate == 2e-5  # YAML reads 2e-5 as a text
    assert load(TrainConfig, file, {}, ["train.learning_rate=5e-5"]).train.learning_rate == 5e-5


def test_pipeline(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "seed: 42\nbase_model: Qwen/Qwen2.5-7B\ndata_path: data/numina_cot_10k.jsonl\noutput_dir: runs/math\n"
        "iterations: 3\nwarmup:\n  sample_size: 1000\n  limit: 10000\n  train: {model_max_length: 2048, "
        "num_train_epochs: 3, learning_rate: 5.0e-5, global_batch_size: 256, mode: sft}\n"
        "score: {instruction_key: instruction, input_key: input, response_key: response, "
        "prompt_template: DIRECT_PROMPT, max_samples: 10000}\n"
        "select: {nll_reject_ratio: 0.1, select_ratio: 0.2}\n"
        "select_train: {train: {learning_rate: 2e-5}}\n",
    )
    found = load(PipelineConfig, file, {})
    assert (found.model, found.data, found.output) == ("Qwen/Qwen2.5-7B", "data/numina_cot_10k.jsonl", "runs/math")
    assert found.iterations == 3
    assert (found.warmup.sample_size, found.warmup.limit) == (1000, 10000)
    assert found.warmup.train is not None and found.warmup.train.global_batch_size == 256
    assert found.score.template == "DIRECT_PROMPT" and found.score.max_samples == 10000
    assert found.select.select_ratio == 0.2 and found.select.params == {"nll_reject_ratio": 0.1}
    assert found.select_train.train is not None and found.select_train.train.learning_rate == 2e-5
    assert refused(PipelineConfig, "warmup.sample_sise=3") == (
        "'warmup.sample_sise=3': unknown key 'warmup.sample_sise'; did you mean 'warmup.sample_size'?"
    )


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models() -> None:
    assert parse_models("folder") == {"base": "folder"}
    assert parse_models("calibrated=runs/warm") == {"calibrated": "runs/warm"}
    assert parse_models(["a", "proxy=b"]) == {"base": "a", "proxy": "b"}
    assert parse_models({"base": "a", "rater": "b"}) == {"base": "a", "rater": "b"}


def test_warmup_roles_on_the_command_line() -> None:
    assert parse_models("warmup/0=c") == {"warmup/0": "c"}


def roles_of(method: Method) -> set[str]:
    """The roles that a method reads, of folds the first one."""
    found = set()
    for signal in method.signals().values():
        folds = isinstance(signal.measure, CrossFitted)
        found |= {f"{signal.model}/0" if folds else signal.model} if signal.model else set()
        if isinstance(signal.measure, CrossFitted) and signal.measure.split.before is not None:
            found |= roles_of(signal.measure.split.before)
    return found


def test_every_role_that_a_method_reads_can_be_bound() -> None:
    """With several evaluations and rounds too, on the command line and in a configuration."""
    more = [SelectiveDPO(evaluations=2), Learnability(folds=Folds(rounds=2))]
    roles = set().union(*(roles_of(one) for one in [*(kind() for kind in METHODS.values()), *more]))
    assert {"base", "path/first", "path/last", "proxy/2", "dpo/0.2/0", "held/0", "held.1/0", "policy"} <= roles
    for role in roles:
        assert parse_models([f"{role}=x"]) == {role: "x"} == parse_models({role: "x"})


def test_paths_with_an_equals_sign_are_paths() -> None:
    assert parse_models("/runs/lr=1/model") == {"base": "/runs/lr=1/model"}
    assert parse_models("base=/runs/lr=1/model") == {"base": "/runs/lr=1/model"}


def test_models_that_do_not_fit() -> None:
    for given, message in [
        (["a", "base=b"], "role 'base' is given twice: 'a' and 'b'"),
        ("prxy=b", "unknown model role 'prxy'; did you mean 'proxy'?"),
        ({"prxy": "b"}, "unknown model role 'prxy'; did you mean 'proxy'?"),
        ("proxy=", "'--model proxy=': write ROLE=WHERE, or WHERE alone for the base"),
    ]:
        with pytest.raises(ConfigError) as caught:
            parse_models(given)
        assert str(caught.value) == message


def test_an_option_names_one_role_and_the_file_the_others(tmp_path: Path) -> None:
    file = written(tmp_path, "models: {base: a, calibrated: b}\nmethod: instructdiff\n")
    assert load(ScoreConfig, file, {"model": ["calibrated=c"]}).model == {"base": "a", "calibrated": "c"}
    assert load(ScoreConfig, file, {}, ["model.base=d"]).model == {"base": "d", "calibrated": "b"}


# ── methods ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_methods() -> None:
    assert parse_methods("ifd") == {"ifd": {}}
    assert parse_methods(["ifd, random", "longest"]) == {"ifd": {}, "random": {}, "longest": {}}
    assert parse_methods({"ifd": {"ratio": "loss"}, "random": None}) == {"ifd": {"ratio": "loss"}, "random": {}}
    with pytest.raises(ConfigError, match=r"^method 'ifd' is given twice$"):
        parse_methods(["ifd", "random,ifd"])


def test_parameters_by_dotted_path() -> None:
    found = load(
        ScoreConfig, None, {"method": ["ifd,perplexity"]}, ["method.ifd.ratio=loss", "methods.perplexity.band=max"]
    )
    assert found.method == {"ifd": {"ratio": "loss"}, "perplexity": {"band": "max"}}


def test_parameters_of_a_method_in_a_file(tmp_path: Path) -> None:
    """Its key has dots of its own; the short name stands for it."""
    spec = "./lib.v2/mine.py:Margin"
    found = load(SelectConfig, None, {"method": [f"ifd,{spec}"]}, ["method.margin.center=2", "method.ifd.ratio=loss"])
    assert found.method == {"ifd": {"ratio": "loss"}, spec: {"center": 2}}
    file = written(tmp_path, f"method: {{'{spec}': {{center: 1, width: 3}}}}\n")
    assert load(SelectConfig, file, {}, ["method.margin.center=5"]).method == {spec: {"center": 5, "width": 3}}
    assert refused(ScoreConfig, "method.maring.center=2", method=[spec]) == (
        "'method.maring.center': 'maring' is not among the methods; did you mean 'margin'?"
    )
    assert short_name(spec) == "margin" and short_name("ifd") == "ifd"


def test_methods_on_the_command_line_replace_those_in_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "method: {ifd: {ratio: loss}, entropy: {band: max}}\n")
    assert load(ScoreConfig, file, {"method": ["entropy,random"]}).method == {"entropy": {"band": "max"}, "random": {}}
    assert load(ScoreConfig, file, {}, ["method=random"]).method == {"random": {}}
    assert load(ScoreConfig, file, {}, ["method.ifd.ratio=perplexity"]).method == {
        "ifd": {"ratio": "perplexity"},
        "entropy": {"band": "max"},
    }


def test_make_method_checks_names_and_types() -> None:
    assert make_method("ifd", {"ratio": "loss", "min_response_tokens": 3}) == IFD(ratio="loss", min_response_tokens=3)
    assert make_method("instructdiff", {"nll_reject_ratio": "0.2", "abs": "true"}) == InstructDiff(
        nll_reject_ratio=0.2, abs=True
    )
    for spec, params, message in [
        ("ifd", {"ration": 1}, "method 'ifd' has no parameter 'ration'; did you mean 'ratio'?"),
        ("ifd", {"ratio": "los"}, "'ifd.ratio': Input should be 'perplexity' or 'loss' (given: 'los')"),
        ("random", {"seed": "x"}, "'random.seed': Input should be a valid integer, "
         "unable to parse string as an integer (given: 'x')"),
        ("full", {"seed": 1}, "method 'full' has no parameter 'seed'; known: "),
        ("ifdd", {}, "unknown method 'ifdd'; did you mean 'ifd'?"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            make_method(spec, params)
        assert str(caught.value) == message


@pytest.mark.parametrize("name", list(METHODS))
def test_every_methods_parameters_survive_the_way_through_json(name: str) -> None:
    import json

    method = METHODS[name]()
    assert make_method(name, json.loads(json.dumps(method.params()))) == method


def test_the_runs_seed_goes_to_methods_that_have_one() -> None:
    pairs = make_methods(["random", "ifd"], {}, 7)
    assert pairs == {"random": ("random", Random(seed=7)), "ifd": ("ifd", IFD())}
    assert make_methods(["random"], {"random": {"seed": 3}}, 7)["random"][1] == Random(seed=3)
    with pytest.raises(
        ConfigError, match=r"^parameters for 'idf', which is not among the methods; did you mean 'ifd'\?$"
    ):
        make_methods(["ifd"], {"idf": {}}, 1)
    with pytest.raises(ConfigError, match=r"^method 'ifd' is given twice$"):
        make_methods(["ifd", "./x.py:IFD"], {}, 1)


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_defaults_are_those_of_the_interface() -> None:
    found = load(ScoreConfig, None, {})
    assert (found.dtype, found.max_length, found.template, found.device) == ("auto", 2048, None, "auto")
    assert (found.batch_tokens, found.executor, found.seed, found.targets) == (None, "local", 42, "all")
    assert found.strict is False and found.limit is None and found.store is None
    assert load(ScoreConfig, None, {"batch_tokens": "auto"}).batch_tokens is None
    assert load(ScoreConfig, None, {"batch_tokens": "4096"}).batch_tokens == 4096
    assert [load(ScoreConfig, None, {"workers": given}).workers for given in ("auto", "3")] == [None, 3]
    chosen = load(SelectConfig, None, {})
    assert (chosen.order, chosen.with_scores, chosen.budget, chosen.select_ratio) == ("rank", False, None, None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_length=0", "the command line: 'max_length': Input should be greater than 0 (given: 0)"),
        ("workers=0", "the command line: 'workers': Input should be greater than 0 (given: 0)"),
        ("dtype=fp8", "the command line: 'dtype': Input should be 'auto', 'float32', 'bfloat16' or 'float16' "
         "(given: 'fp8')"),
        ("executor=rey", "the command line: 'executor': Input should be 'local' or 'ray' (given: 'rey')"),
        ("map=instruction", "'map': 'instruction' is not name=column; "
         "write map as instruction=question,response=answer"),
        ("output=[1]", "the command line: 'output': Input should be a valid string (given: [1])"),
        ("strct=true", "'strct=true': unknown key 'strct'; did you mean 'strict'?"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit(override: str, message: str) -> None:
    assert refused(ScoreConfig, override) == message


def test_pairs() -> None:
    assert parse_pairs("a=b, c = d", "map") == {"a": "b", "c": "d"}
    assert parse_pairs("a=b=c", "map") == {"a": "b=c"}
    for bad in ("a", "=b", "a=", "a=b,"):
        with pytest.raises(ConfigError, match="is not name=column"):
            parse_pairs(bad, "map")
