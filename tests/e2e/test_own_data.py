"""A person's own files and models: fitting, other tokenizers, an encoder as reward model."""

import json
import random
from pathlib import Path

import pytest
from conftest import QUICK, Run, rows
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from r2m_cli.data.gold_world import GoldWorld


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Preference pairs in the gold world's words, and two bad rows among them."""
    world, rng = GoldWorld(), random.Random(0)
    lines = []
    for prompt in world.prompts(60, seed=5):
        a, b = world.demonstration(prompt, rng), world.demonstration(prompt, rng)
        lines.append(json.dumps({"prompt": prompt, "chosen": a, "rejected": b if b != a else b + " ."}))
    lines[7] = json.dumps({"prompt": "fruit : apple pear", "chosen": "", "rejected": "apple"})
    lines[9] = json.dumps({"text": "?"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def base(r2m: Run, tmp_path: Path) -> Path:
    """A policy folder to start from."""
    r2m("sft", *QUICK, "output=base")
    return tmp_path / "base"


FILE = ("data=file", "data.path=pairs.jsonl", "data.holdout=0.2")


def test_sft_reward_and_train_on_a_file(r2m: Run, tmp_path: Path, pairs: Path, base: Path) -> None:
    r2m("sft", *QUICK, *FILE, "policy.base=base", "output=sft", "policy.fit.parameters=lora")
    for parameters in ("head", "lora", "full"):
        said = r2m(
            "reward",
            *QUICK,
            *FILE,
            "reward.base=base",
            f"output=rm-{parameters}",
            f"reward.fit.parameters={parameters}",
        ).stdout
        assert "held-out pairs right" in said
        AutoModelForSequenceClassification.from_pretrained(tmp_path / f"rm-{parameters}")
        assert json.loads((tmp_path / f"rm-{parameters}" / "fit.json").read_text())["pairs"] > 40
    full = r2m("reward", *QUICK, *FILE, "reward.base=base", "output=rm-full", code=2)
    assert "not empty" in full.stderr

    r2m("train", *QUICK, *FILE, "policy.path=sft", "reward.path=rm-head", "eval.prompts=4", "hydra.run.dir=run")
    assert "gold" not in rows(tmp_path / "run")[-1]
    warned = (tmp_path / "run" / "warnings.log").read_text()
    assert "pairs.jsonl:8" in warned
    assert "pairs.jsonl:10" in warned
    no_head = r2m("train", *QUICK, *FILE, "policy.path=sft", "reward.path=base", code=2)
    assert "no trained scoring head" in no_head.stderr


def test_an_encoder_with_its_own_tokenizer_can_be_the_reward_model(r2m: Run, tmp_path: Path) -> None:
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", ":", ".", " "]
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=48,
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=48, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    r2m("train", *QUICK, "reward.path=encoder", "hydra.run.dir=run")
    last = rows(tmp_path / "run")[-1]
    assert last["reward"] != last["reward_frozen"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["single", "zero"])
def test_a_real_language_model_on_dialogues(r2m: Run, tmp_path: Path, engine: str) -> None:
    pytest.importorskip("gguf")
    lines = []
    for i in range(40):
        prompt = f"\n\nHuman: What is {i} plus {i}?\n\nAssistant:"
        lines.append(json.dumps({"chosen": f"{prompt} It is {2 * i}.", "rejected": f"{prompt} I do not know {i}."}))
    (tmp_path / "dialogues.jsonl").write_text("\n".join(lines))
    small = (
        "data.path=dialogues.jsonl",
        "eval.pairs=4",
        "eval.prompts=2",
        "rollout.max_new_tokens=8",
        "reward.fit.rows=16",
    )
    chosen = ("engine=zero", "engine.num_processes=2", "engine.stage=2") if engine == "zero" else ()
    r2m("train", "+experiment=hh_rlhf_cpu", *small, *chosen, "train.steps=2", "hydra.run.dir=run")
    metrics = rows(tmp_path / "run")
    assert metrics[-1]["step"] == 2
    assert all(value is not None for row in metrics for value in row.values())
    assert metrics[1]["kl"] == pytest.approx(0, abs=1e-3)


def test_completions_are_learnt_from_and_compared_with(r2m: Run, tmp_path: Path, base: Path) -> None:
    """Rows as of summarisation data: a prompt and one good reply, no labels."""
    words = [word for word in sorted(GoldWorld().tokenizer().get_vocab()) if word.isalpha()][:20]
    rows_ = [{"prompt": f"tool : {word}", "completion": f"i suggest {word} ."} for word in words]
    (tmp_path / "summaries.jsonl").write_text("\n".join(map(json.dumps, rows_)))
    data = ("data=file", "data.path=summaries.jsonl", "data.holdout=0.2", *QUICK)
    r2m("sft", *data, f"policy.base={base}", "output=policy")
    assert json.loads((tmp_path / "policy" / "fit.json").read_text())["demonstrations"] == 16
    r2m("reward", *QUICK, "output=judge")
    models = ("policy.path=policy", "reward.path=judge")
    r2m("evaluate", *data, *models, "eval.judge=reward", "hydra.run.dir=evaluation")
    figures = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert figures["win_rate/wins"] + figures["win_rate/ties"] + figures["win_rate/losses"] == 4
    others = [json.loads(line)["other"] for line in (tmp_path / "evaluation" / "comparisons.jsonl").open()]
    assert all(text.startswith("i suggest ") for text in others)
