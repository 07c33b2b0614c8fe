"""The configurations under ``configs``: they load, and say what the papers say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from instdiff.config.base import load
from instdiff.config.commands import PipelineConfig, SampleConfig, ScoreConfig, TrainConfig
from instdiff.config.methods import make_method
from instdiff.config.train import TrainSettings
from instdiff.core import Method
from instdiff.rendering.templates import template

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VERBS = {"pipeline": PipelineConfig, "sample": SampleConfig, "score": ScoreConfig, "train": TrainConfig}

# lr, global batch, epochs, tokens, warm-up, weight decay
RECIPES = {
    "instructdiff": (5e-5, 256, 3, 2048, 0.05, 0.01),
    "tshirt": (2e-5, 128, 3, 2048, 0.03, 0.0),
    "miwv": (2e-5, 128, 3, 512, 0.03, 0.0),
    "mads": (2e-5, 128, 3, 2048, 0.03, 0.0),
}


def method_of(config: PipelineConfig) -> Method:
    return make_method(config.select.method, config.select.params, config.seed)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str) -> None:
    config = load(PipelineConfig, CONFIGS / "recipes" / f"{name}.yaml", {})
    t = config.train
    have = (
        t.learning_rate, t.global_batch_size, t.num_train_epochs, t.model_max_length, t.warmup_ratio, t.weight_decay
    )  # fmt: skip
    assert have == RECIPES[name] and t.lr_scheduler_type == "cosine" and not t.use_lora and t.mode == "sft"
    method = method_of(config)
    assert method.name == name
    roles = {signal.model for signal in method.signals().values()}
    assert roles <= {"base", "calibrated", "", None, *config.models}
    template(config.template or "alpaca")
    lines = (CONFIGS / "recipes" / f"{name}.yaml").read_text().splitlines()
    assert any("# fact" in line for line in lines) and any("our reading" in line for line in lines)


def test_what_the_papers_say_of_selection() -> None:
    at = {name: load(PipelineConfig, CONFIGS / "recipes" / f"{name}.yaml", {}) for name in RECIPES}
    tshirt = method_of(at["tshirt"])
    assert (tshirt.k, tshirt.draws, tshirt.alpha, tshirt.gamma, tshirt.model) == (75, 30, 5.0, 2.0, "proxy")
    assert at["tshirt"].models == {"proxy": "gpt2"} and at["tshirt"].select.budget == 2600
    layout = template(at["tshirt"].template)
    assert layout.turn("Say hello.", "").endswith("questions.\nUSER:\nSay hello.\nASSISTANT:\n")
    assert method_of(at["miwv"]).pooling == "mean" and at["miwv"].select.budget == "10%"
    assert method_of(at["mads"]).model == "proxy" and at["mads"].select.budget == "15%"
    first = at["instructdiff"]
    assert (method_of(first).nll_reject_ratio, first.select.select_ratio, first.warmup.sample_size) == (0.1, 0.1, 1000)


# The paper's Table 9: lr, global batch, epochs, tokens.
DOMAINS = {
    "math/pipeline_math": (5e-5, 256, 3, 2048),
    "general/pipeline_general": (2e-5, 64, 10, 2048),
    "code/pipeline_code": (1e-5, 256, 5, 4096),
    "med/pipeline_med_iter": (2e-5, 64, 3, 512),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_domain(name: str) -> None:
    config = load(PipelineConfig, CONFIGS / f"{name}.yaml", {})
    t: TrainSettings = config.select_train.train or config.train
    assert (t.learning_rate, t.global_batch_size, t.num_train_epochs, t.model_max_length) == DOMAINS[name]
    assert (t.lr_scheduler_type, t.warmup_ratio, t.weight_decay, t.max_grad_norm) == ("cosine", 0.05, 0.01, 1.0)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("m*/*.yaml")), ids=lambda path: path.stem)
def test_domain_files_load(path: Path) -> None:
    verb = path.stem.partition("_")[0]
    assert load(VERBS[verb], path, {}).seed == yaml.safe_load(path.read_text())["seed"] == 42
