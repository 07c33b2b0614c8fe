"""The controlled pool: what its labels say is true, and its base model can do what it is said to be able to do."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from instdiff import load, score, select
from instdiff.data.builtin import path
from instdiff.data.builtin.skills import AMOUNTS, BEYOND, FILLER, KINDS, KNOWN, LEARNABLE, SKILLS, rows
from instdiff.data.builtin.skills.tasks import WORDS, is_reserved, vocabulary
from instdiff.errors import DataError
from instdiff.methods import Oracle
from instdiff.store import Store
from skilled import Greedy

ROOT = Path(__file__).parents[2]
Row = dict[str, str]


@pytest.fixture(scope="module")
def pool() -> list[Row]:
    return rows()


def answered(row: Row) -> str:
    return SKILLS[row["skill"]].answer(row["input"])


def asked(some: list[Row]) -> set[tuple[str, str]]:
    return {(row["instruction"], row["input"]) for row in some}


def of(some: list[Row], *kinds: str) -> list[Row]:
    return [row for row in some if row["kind"] in kinds]


EXAMPLES = {
    "copy": ("ant bat cat", "ant bat cat"),
    "reverse": ("ant bat cat", "cat bat ant"),
    "capitals": ("ant bat cat", "ANT BAT CAT"),
    "first": ("ant bat cat", "ant"),
    "last": ("ant bat cat", "cat"),
    "twice": ("ant bat cat", "ant ant bat bat cat cat"),
    "plus_one": ("0 3 9 9", "1 4 0 0"),
    "backwards": ("ant bat cat", "cat bat ant"),
    "second": ("ant bat cat", "bat"),
    "rotate": ("ant bat cat", "bat cat ant"),
    "swap_ends": ("ant bat cat dog", "dog bat cat ant"),
    "loud_back": ("ant bat cat", "CAT BAT ANT"),
    "minus_one": ("0 3 9 9", "9 2 8 8"),
    "sort": ("3 0 9 3", "0 3 3 9"),
    "product": ("9 9 9 9", "9 8 0 1"),
    "greet": ("ant", "hello ant"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_right(name: str) -> None:
    said, answer = EXAMPLES[name]
    assert SKILLS[name].answer(said) == answer


def test_tables_pair_every_word_with_another() -> None:
    for name in ("partner", "rival"):
        said = [SKILLS[name].answer(word) for word in WORDS]
        assert sorted(said) == sorted(WORDS) and all(a != b for a, b in zip(said, WORDS, strict=True))
    assert SKILLS["partner"].answer(" ".join(WORDS)) != SKILLS["rival"].answer(" ".join(WORDS))


def test_secret_functions_depend_on_every_item() -> None:
    for name in ("cipher", "secret"):
        answers = {SKILLS[name].answer(f"ant bat cat dog {word}").replace(word, "?") for word in WORDS[4:20]}
        assert len(answers) > 12
    assert sorted(SKILLS["secret"].answer("ant bat cat dog").split()) == ["ant", "bat", "cat", "dog"]


def test_counts(pool: list[Row]) -> None:
    assert {tuple(row) for row in pool} == {("instruction", "input", "output", "kind", "skill", "detail")}
    kinds = {"learnable": 1160, "known": 960, "noise": 630, "filler": 500, "beyond": 450, "duplicate": 300}
    assert Counter(row["kind"] for row in pool) == kinds and set(kinds) == set(KINDS)
    assert Counter(row["skill"] for row in of(pool, "known", "learnable", "beyond", "filler")) == AMOUNTS
    assert Counter(row["detail"] for row in of(pool, "noise")) == {"swapped": 260, "random": 200, "contradictory": 170}
    assert Counter(row["detail"] for row in of(pool, "learnable")) == {"easy": 330, "medium": 440, "hard": 390}
    named = {skill.name for skill in (*KNOWN, *LEARNABLE, *BEYOND, *FILLER)}
    assert {row["skill"] for row in pool} == named == set(SKILLS) and len(named) == 23


@pytest.mark.parametrize("seed", [0, 3])
def test_labels_are_true(seed: int) -> None:
    pool = rows("train", seed)
    noise, duplicates = of(pool, "noise"), of(pool, "duplicate")
    assert all(row["output"] == answered(row) for row in pool if row["kind"] != "noise")
    assert not [row for row in noise if row["output"] == answered(row)]
    clean = of(pool, "known", "learnable", "beyond", "filler")
    assert len(asked(clean)) == len(clean), "a clean row is asked once"
    whole = {(row["instruction"], row["input"], row["output"]): row["kind"] for row in clean}
    assert all(whole[row["instruction"], row["input"], row["output"]] == row["detail"] for row in duplicates)
    against = [row for row in noise if row["detail"] == "contradictory"]
    assert asked(against) <= asked(of(pool, "learnable"))
    assert not asked([row for row in noise if row not in against]) & asked(clean)
    outputs = {row["output"] for row in clean}
    assert all(row["output"] in outputs for row in noise if row["detail"] == "swapped")
    assert all(set(row["output"].split()) <= set(WORDS) for row in noise if row["detail"] == "random")


@pytest.mark.parametrize("share", [0.0, 0.4, 0.5])
def test_a_pool_with_another_share_of_noise(share: float) -> None:
    pool = rows("train", 7, share)
    found = Counter(row["kind"] for row in pool)
    assert len(pool) == 4000 and found["noise"] == round(4000 * share)
    usual = {"learnable": 1160, "known": 960, "filler": 500, "beyond": 450, "duplicate": 300}
    assert all(abs(found[kind] - (1 - share) * 4000 / 3370 * count) <= 1 for kind, count in usual.items())
    details = Counter(row["detail"] for row in of(pool, "noise"))
    noise = {"swapped": 260, "random": 200, "contradictory": 170}
    assert all(abs(details[what] - share * 4000 / 630 * count) <= 1 for what, count in noise.items())
    skills = Counter(row["skill"] for row in of(pool, "known", "learnable", "beyond", "filler"))
    assert all(abs(skills[name] - (1 - share) * 4000 / 3370 * count) <= 1 for name, count in AMOUNTS.items())
    assert all((row["output"] == answered(row)) == (row["kind"] != "noise") for row in pool)
    assert not asked(pool) & asked(rows("test", 7))


def test_the_usual_share_of_noise_is_the_usual_pool() -> None:
    assert rows("train", 3, 0.1575) == rows("train", 3)
    found = load("builtin:skills/train@3?noise=0.4").source_rows(range(4000))
    assert found == rows("train", 3, 0.4) != rows("train", 4, 0.4)


def test_answers_are_short_and_in_the_vocabulary(pool: list[Row]) -> None:
    words = set(vocabulary())
    assert len(words) == len(vocabulary()) == 168
    every = [*pool, *rows("test"), *rows("known")]
    assert all(set(f"{row['instruction']} {row['input']} {row['output']}".split()) <= words for row in every)
    lengths = Counter(len(row["output"].split()) for row in every)
    assert min(lengths) == 1 and max(lengths) == 6


def test_draws_are_determined_by_the_seed(pool: list[Row]) -> None:
    assert rows() == pool and rows("train", 1) != pool
    assert Counter(row["kind"] for row in rows("train", 1)) == Counter(row["kind"] for row in pool)
    first = {"instruction": "who are the partners", "input": "pen fig ink dog bat", "output": "leg van kit"}
    assert pool[0] == {**first, "kind": "noise", "skill": "partner", "detail": "random"}


def test_tests_are_clean_and_apart(pool: list[Row]) -> None:
    test = rows("test")
    assert Counter(row["skill"] for row in test) == {skill.name: 50 for skill in (*KNOWN, *LEARNABLE)}
    assert all(row["output"] == answered(row) for row in test)
    assert len(asked(test)) == len(test) == 800
    seen = {row["input"] for some in (pool, rows("train", 1), rows("known")) for row in some}
    assert not seen & {row["input"] for row in [*test, *rows("test", 1)]}
    assert not any(is_reserved(text) for text in seen)


def test_known_rows() -> None:
    known = rows("known")
    assert Counter(row["skill"] for row in known) == {skill.name: 250 for skill in (*KNOWN, *FILLER)}
    assert all(row["output"] == answered(row) for row in known)


def test_loading_by_name(pool: list[Row]) -> None:
    found = load("builtin:skills")
    assert (len(found), found.format, found.origin) == (4000, "alpaca", "builtin:skills")
    assert found.column("kind") == [row["kind"] for row in pool]
    sample = found.sample(0)
    assert (sample.instruction, sample.input, sample.response) == tuple(pool[0].values())[:3]
    assert len(load("builtin:skills/test")) == 800
    assert load("builtin:skills/train@0").ids == found.ids != load("builtin:skills@1").ids
    assert len(load("builtin:skills", limit=7)) == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("builtin:skills/tests", "did you mean 'builtin:skills/test'"),
        ("builtin:skillz", "did you mean 'builtin:skills'"),
        ("builtin:skills@two", "the seed 'two' is no whole number"),
        ("builtin:skills@1?noise=0.6", "there is no pool with a share '0.6' of noise; write .* 0 to 0.5"),
        ("builtin:skills@1?noise=-1", "there is no pool with a share '-1' of noise"),
        ("builtin:skills@1?nose=0.4", "the pool alone takes a question mark, and noise behind it"),
        ("builtin:skills/test@1?noise=0.4", "the pool alone takes a question mark"),
    ],
)
def test_wrong_names(name: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(name)


# ── the oracle ────────────────────────────────────────────────────────────────────────────────────────────────────────


def module(name: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / file)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def test_the_oracle_takes_learnable_rows_evenly(tmp_path: Path) -> None:
    wanted = ("learnable", "known", "filler", "duplicate", "beyond", "noise")
    oracle = partial(Oracle, column="kind", wanted=wanted, balance="skill")
    pool, store = load("builtin:skills"), Store(tmp_path)
    table = score(pool, [oracle(seed=1)], "builtin:skills", store=store)
    chosen = pool.take(select(pool, table["oracle"], budget="400").at)
    assert set(chosen.column("kind")) == {"learnable"}
    assert Counter(chosen.column("skill")) == {skill.name: 50 for skill in LEARNABLE}
    most = pool.take(select(pool, table["oracle"], budget="3370").at)
    assert Counter(most.column("kind"))["noise"] == 0
    other = score(pool, [oracle(seed=2)], "builtin:skills", store=store)
    assert set(select(pool, other["oracle"], budget="400").ids) != set(chosen.ids)


# ── the base ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_base_is_small_and_speaks_the_vocabulary() -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = path("skills")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_500_000
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config.vocab_size == len(tokenizer) == 168
    assert tokenizer.convert_tokens_to_ids(vocabulary()) == list(range(168))
    ids = tokenizer("reverse the words\nant bat\n").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "reverse", "the", "words", "\n", "ant", "bat", "\n"]
    assert tokenizer.decode(ids[5:7]) == "ant bat"
    facts = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"is_local", "local_files_only", "name_or_path"} & set(facts)
    assert "678,016" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_base_knows_what_it_is_to_know() -> None:
    test = [row for row in rows("test") if row["kind"] in ("known", "learnable")]
    some = [row for name in SKILLS for row in [r for r in test if r["skill"] == name][:12]]
    said = Greedy(path("skills")).answers([f"{row['instruction']}\n{row['input']}\n" for row in some])
    right = np.array([text == row["output"] for text, row in zip(said, some, strict=True)])
    known = np.array([row["kind"] == "known" for row in some])
    assert right[known].mean() > 0.95 and right[~known].mean() < 0.2


# ── the script ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_script_makes_a_model_folder(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    script = module("pretrain_skills", "scripts/pretrain_skills.py")
    losses = script.main(["--out", str(tmp_path / "a"), "--steps", "12", "--batch", "8"])
    again = script.main(["--out", str(tmp_path / "b"), "--steps", "12", "--batch", "8"])
    assert losses == again and len(losses) == 12 and losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert (model.dtype, model.num_parameters()) == (torch.bfloat16, 678_016)
    same = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert same == {file.name: file.read_bytes() for file in (tmp_path / "b").iterdir()}
    assert same["tokenizer.json"] == (path("skills") / "tokenizer.json").read_bytes()


def test_the_script_shows_known_skills_alone() -> None:
    from random import Random

    script = module("pretrain_skills", "scripts/pretrain_skills.py")
    rng, tests = Random(5), {row["input"] for row in rows("test")}
    for made in (script.single, script.several):
        for _ in range(200):
            parts = made(rng)
            assert [learnt for _, learnt in parts[-2:]] == [False, True]
            said = parts[-2][0].strip().split("\n")[-1]
            assert said not in tests
    ids, labels = script.batch([[("ant\n", False), ("bat", True)], [("cat", True)]])
    at = {word: place for place, word in enumerate(vocabulary())}
    assert ids.tolist() == [[1, at["ant"], at["\n"], at["bat"], 2], [1, at["cat"], 2, 3, 3]]
    assert labels.tolist() == [[-100, -100, -100, at["bat"], 2], [-100, at["cat"], 2, -100, -100]]
