"""A model that was trained on conversations stops: before its training it goes on, after it it ends its answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instdiff.config.train import TrainSettings
from instdiff.core import ModelRef, Settings
from instdiff.data import Pool, load
from instdiff.engine.generation.backend import GenerationRequest, Prompt, Sampling
from instdiff.engine.generation.transformers_backend import Local
from instdiff.store import Store
from instdiff.training.sft import train

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ROOM, LEAST = 64, 3


def chats(count: int) -> Pool:
    """Short rows as conversations."""
    rows = [row for row in load("builtin:demo").samples() if 6 < len(row.response.split()) < 15]
    return load(
        [
            {
                "messages": [
                    {"role": "user", "content": row.instruction + (f"\n{row.input}" if row.input else "")},
                    {"role": "assistant", "content": row.response},
                ]
            }
            for row in rows[:count]
        ]
    )


def endings(model: ModelRef, pool: Pool, settings: Settings, memo: Path) -> int:
    """How many of twenty greedy answers end by themselves, with something said before."""
    backend = Local(model, settings, memo, print)
    asked = []
    for number, sample in enumerate(list(pool.samples())[:20]):
        prompt = Prompt(sample.instruction)
        asked.append(GenerationRequest(str(number), prompt, backend.prompt_text(prompt), number))
    answers = [answer for some in backend.write(asked, Sampling(max_new_tokens=ROOM)) for _, answer in some]
    assert len(answers) == 20
    said = backend._side.tokenizer.encode([answer.text or "" for answer in answers])
    return sum(len(ids) >= LEAST and answer.completion_tokens < ROOM for ids, answer in zip(said, answers, strict=True))


def check(where: str, jinja: str, tmp_path: Path, how: TrainSettings) -> None:
    path, store = tmp_path / "chat.jinja", Store(tmp_path / "store")
    path.write_text(jinja, encoding="utf-8")
    model = ModelRef(where, template=str(path))
    settings, pool = Settings(device="cpu", dtype="float32", max_length=512), chats(50)
    assert len(pool) == 50
    before = endings(model, pool, settings, store.memo)
    trained = train(pool, model, how, settings, tmp_path / "trained", store=store, seed=1, log=print)
    after = endings(trained, pool, settings, store.memo)
    assert before <= 5 and after >= 19, (before, after)


@pytest.mark.slow
def test_a_small_model_stops_by_the_text_of_an_end(tmp_path: Path) -> None:
    how = TrainSettings(num_train_epochs=10, learning_rate=1e-3, global_batch_size=8, model_max_length=512)
    check("builtin:tiny", CHATML, tmp_path, how)


@pytest.mark.slow
def test_gemma_stops_by_its_end_of_turn(tmp_path: Path) -> None:
    models = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models"))
    if not (models / "gemma3-270m").is_dir():
        pytest.skip("the real models are not here")
    how = TrainSettings(num_train_epochs=3, learning_rate=5e-5, global_batch_size=5, model_max_length=512)
    check(str(models / "gemma3-270m"), GEMMA, tmp_path, how)
