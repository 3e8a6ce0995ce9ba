"""Reward models that stay frozen: fits with centring, fits that differ by their seed, ensembles of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import QUICK, Run, rows, timeless
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from r2m_cli.data.gold_world import GoldWorld

PARAMETERS = ("head", "lora", "full")
LONGER = ("reward.fit.epochs=6", "reward.fit.batch_size=32", "reward.fit.lr=1e-2")
ENSEMBLE = (*QUICK, "reward=ensemble", "feedback=none")


def scores(folder: Path, conversations: list[tuple[list[dict[str, str]], str]]) -> np.ndarray:
    """A reward model's scores with transformers alone, one conversation at a time: no padding, no batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt, reply in conversations:
        messages = [*prompt, {"role": "assistant", "content": reply}]
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        with torch.no_grad():
            found.append(model(torch.tensor([ids])).logits.item())
    return np.array(found)


def pair_scores(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the chosen and of the rejected replies of the pairs that lie beside a model of the gold world."""
    pairs = [row for row in rows(folder, "pairs.jsonl") if row["split"] == split]
    chosen, rejected = (scores(folder, [(p["prompt"], p[side]) for p in pairs]) for side in ("chosen", "rejected"))
    return chosen, rejected


def loss_of(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """Bradley-Terry with centring of 0.2."""
    return float(np.mean(np.log1p(np.exp(-(chosen - rejected))) + 0.2 * (chosen + rejected) ** 2))


def figures(folder: Path) -> dict[str, float]:
    return json.loads((folder / "fit.json").read_text())  # type: ignore[no-any-return]


def config_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())  # type: ignore[no-any-return]


def members_of(run: Path) -> list[Path]:
    reward = config_of(run)["reward"]
    return [Path(reward["path"]), *map(Path, reward["paths"])]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A reward model that is an encoder: its scoring head has a bias."""
    tokenizer = GoldWorld().tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    torch.nn.init.constant_(model.classifier.bias, 3.0)
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.mark.parametrize("parameters", ["head", "full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_fit_with_centring_says_how_it_scores(r2m: Run, tmp_path: Path, parameters: str) -> None:
    fit = (*QUICK, *LONGER, f"reward.fit.parameters={parameters}", "reward.fit.centring=0.2")
    r2m("reward", *fit, "reward.fit.lr=0", "output=still")
    r2m("reward", *fit, "output=fitted")
    for name in ("still", "fitted"):
        said, (chosen, rejected) = figures(tmp_path / name), pair_scores(tmp_path / name, "heldout")
        both = np.concatenate([chosen, rejected])
        assert said["score_mean"] == pytest.approx(both.mean(), abs=1e-4)
        assert said["score_std"] == pytest.approx(both.std(), abs=1e-4)
        assert said["accuracy"] == pytest.approx((chosen > rejected).mean())
        assert said["heldout"] == len(chosen) == 32
        assert said["accuracy_before"] == figures(tmp_path / "still")["accuracy"]
    # At rate 0 the mean over the last epoch is that of one model, which lies there to be asked.
    still = loss_of(*pair_scores(tmp_path / "still", "train"))
    assert figures(tmp_path / "still")["loss"] == pytest.approx(still, abs=1e-4)
    assert figures(tmp_path / "fitted")["loss"] < still


def test_the_bias_of_a_head_is_trained_by_centring_alone(r2m: Run, tmp_path: Path, encoder: Path) -> None:
    fit = (*QUICK, "reward.base=encoder", "reward.fit.parameters=head", "reward.fit.epochs=10", "reward.fit.lr=0.1")
    r2m("reward", *fit, "output=plain")
    r2m("reward", *fit, "reward.fit.centring=0.5", "output=centred")
    before, plain, centred = (
        load_file(tmp_path / name / "model.safetensors") for name in ("encoder", "plain", "centred")
    )
    assert torch.equal(plain["classifier.bias"], before["classifier.bias"]), "differences say nothing of it"
    assert not torch.equal(plain["classifier.weight"], before["classifier.weight"])
    assert abs(figures(tmp_path / "centred")["score_mean"]) < 0.3 * abs(figures(tmp_path / "plain")["score_mean"])
    for name in ("plain", "centred"):
        both = np.concatenate(pair_scores(tmp_path / name, "heldout"))
        assert figures(tmp_path / name)["score_mean"] == pytest.approx(both.mean(), abs=1e-4)
    frozen = [name for name in before if "classifier" not in name]
    assert all(torch.equal(centred[name], before[name]) for name in frozen)


@pytest.mark.parametrize("parameters", ["head", "full", pytest.param("lora", marks=pytest.mark.slow)])
def test_fits_differ_by_their_seed_and_by_nothing_else(r2m: Run, tmp_path: Path, parameters: str) -> None:
    base = ()
    if parameters == "lora":  # of a language model: adapters and the head are fresh, the rest is not
        r2m("sft", *QUICK, "output=base")
        base = ("reward.base=base",)
    fit = (*QUICK, *base, f"reward.fit.parameters={parameters}")
    for name, seed in (("a", 0), ("b", 1), ("c", 2), ("b2", 1)):
        r2m("reward", *fit, f"reward.fit.seed={seed}", f"output={name}")
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ("a", "b", "c", "b2")}
    for one, other in (("a", "b"), ("b", "c"), ("a", "c")):
        assert not torch.equal(weights[one]["score.weight"], weights[other]["score.weight"])
        assert rows(tmp_path / one, "pairs.jsonl") == rows(tmp_path / other, "pairs.jsonl"), "the data is the same"
    assert all(torch.equal(weights["b"][name], weights["b2"][name]) for name in weights["b"])


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty"])
def test_the_logged_reward_is_that_of_the_members(r2m: Run, tmp_path: Path, combine: str) -> None:
    r2m("train", *ENSEMBLE, f"reward.combine={combine}", "reward.uncertainty=0.5", "hydra.run.dir=run")
    members = members_of(tmp_path / "run")
    assert len(set(members)) == 3
    samples = rows(tmp_path / "run", "samples.jsonl")
    calibrated = []
    for folder in members:
        fitted = figures(folder)
        raw = scores(folder, [(row["prompt"], row["response"]) for row in samples])
        calibrated.append((raw - fitted["score_mean"]) / fitted["score_std"])
    mean, worst = np.mean(calibrated, axis=0), np.min(calibrated, axis=0)
    penalised = mean - 0.5 * np.mean((np.array(calibrated) - mean) ** 2, axis=0)
    expected = {"mean": mean, "worst": worst, "uncertainty": penalised}[combine]
    assert [row["reward_frozen"] for row in samples] == pytest.approx(expected, abs=1e-4)
    assert [row["reward"] for row in samples] == [row["reward_frozen"] for row in samples]


def test_the_first_member_is_the_single_model_and_a_larger_ensemble_keeps_the_smaller(r2m: Run, tmp_path: Path) -> None:
    short = ("train.steps=1", "eval.every=0", "checkpoint.export=false")
    r2m("train", *QUICK, *short, "feedback=none", "hydra.run.dir=single")
    r2m("train", *ENSEMBLE, *short, "reward.members=2", "reward.combine=worst", "hydra.run.dir=two")
    r2m("train", *ENSEMBLE, *short, "hydra.run.dir=three")
    single, two, three = (members_of(tmp_path / name) for name in ("single", "two", "three"))
    assert len(single) == 1
    assert three[:2] == two
    assert two[:1] == single
    assert [config_of(folder)["reward"]["fit"]["seed"] for folder in three] == [0, 1, 2]


def test_an_ensemble_resumes(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *ENSEMBLE, "hydra.run.dir=whole")
    r2m("train", *ENSEMBLE, "train.stop_at=1", "hydra.run.dir=parts")
    r2m("train", "resume=parts", *ENSEMBLE, "train.stop_at=null")
    whole, parts = (list(map(timeless, rows(tmp_path / name))) for name in ("whole", "parts"))
    assert whole == parts
    more = r2m("train", "resume=parts", "train.steps=3", "reward.paths=[elsewhere]", code=2)
    assert "reward.paths" in more.stderr


@pytest.mark.long
def test_members_of_ones_own(r2m: Run, tmp_path: Path) -> None:
    r2m("reward", *QUICK, "output=a")
    r2m("reward", *QUICK, "reward.fit.seed=5", "output=b")
    shutil.copytree(tmp_path / "b", tmp_path / "bare")
    (tmp_path / "bare" / "fit.json").unlink()
    own = (*QUICK, "feedback=none", "reward.path=a", "reward.members=2", "reward.combine=worst", "train.steps=1")
    said = r2m("train", *own, "reward.paths=[b]", "hydra.run.dir=calibrated").stderr
    assert "calibration" not in said
    said = r2m("train", *own, "reward.paths=[bare]", "hydra.run.dir=run").stderr
    assert said.count("without calibration") == 1
    assert "bare" in next(line for line in said.splitlines() if "without calibration" in line)
    samples = rows(tmp_path / "run", "samples.jsonl")
    texts = [(row["prompt"], row["response"]) for row in samples]
    fitted = figures(tmp_path / "a")
    first = (scores(tmp_path / "a", texts) - fitted["score_mean"]) / fitted["score_std"]
    expected = np.minimum(first, scores(tmp_path / "bare", texts))
    assert [row["reward_frozen"] for row in samples] == pytest.approx(expected, abs=1e-4)

    missing = r2m("train", *own, "reward.paths=[/nowhere]", code=2).stderr
    assert "reward.paths[0]=/nowhere" in missing
    (tmp_path / "bare" / "fit.json").write_text("{")
    broken = r2m("train", *own, "reward.paths=[bare]", "hydra.run.dir=broken", code=2).stderr
    assert "fit.json" in broken
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    unnamed = r2m("train", *own, "data=file", "data.path=pairs.jsonl", "policy.path=run/policy", code=2).stderr
    assert "reward.base is null" in unnamed


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_score_as_one_process(r2m: Run, tmp_path: Path, stage: int) -> None:
    r2m("train", *ENSEMBLE, "hydra.run.dir=one")
    r2m("train", *ENSEMBLE, "engine=zero", "engine.num_processes=2", f"engine.stage={stage}", "hydra.run.dir=two")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("reward", "reward_frozen", "eval/reward_frozen", "kl"):
            if name in one:
                assert two[name] == pytest.approx(one[name], abs=2e-4), (one["step"], name)
