"""Whole training runs that share prompts against the same with `engine.attention=padded`: equal in every step."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Run, ranks_of_many, rows, timeless
from families import DROPOUT, FAMILIES, small_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from r2m_cli.data.words import CHAT_TEMPLATE

# Both paths compute in fp32, in another order: single forwards agree to about 1e-6 of their scale, three steps with two
# updates each carry that on, and the largest gap seen is 1e-5, in the reward model's gradient norm. A sampled token flips
# where a draw falls within 1e-6 of the border between two tokens: with 300 draws a run that is one run in thousands, and
# none with these seeds.
TOLERANCE = 1e-4
# Softmax does not see a bias that all keys have in common: its gradient is rounding alone, which Adam scales up to steps
# of the learning rate.
WITHOUT_GRADIENT = ("c_attn.bias", "query_key_value.bias")
# The reward model is of the next architecture in the list.
REWARD = dict(zip(FAMILIES, [*list(FAMILIES)[1:], "llama"]))
SETTINGS = (
    "data=file", "data.path=prompts.jsonl", "data.holdout=0.2", "feedback=r2m", "feedback.dim=8", "train.steps=3",
    "ppo.prompts_per_step=4", "ppo.group_size=3", "ppo.epochs=2", "ppo.beta=0.1", "ppo.lr=1e-3", "eval.every=3",
    "eval.prompts=4", "rollout.max_new_tokens=8", "rollout.max_prompt_tokens=24", "logger.samples_every=1",
    "reward.max_tokens=64", "rollout.tokens_per_batch=40",  # some groups alone have more, others go in pairs
)  # fmt: skip
FAST = ("llama", "gpt_neox", "gpt2")


def letters() -> PreTrainedTokenizerFast:
    """One token a byte, as far as English needs them; with the classes that transformers has for the architectures, some of
    which insist on bytes, it gives the same tokens."""
    pieces = ["<pad>", "<unk>", "<eos>", "<user>", "<assistant>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>",
        extra_special_tokens=["<user>", "<assistant>"], chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def write_models(folder: Path, family: str) -> tuple[str, ...]:
    """Policy and reward model of an architecture in `folder`, prompts of 5 to 18 tokens; the settings that name them."""
    rng, tokenizer = random.Random(0), letters()
    prompts = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 14))) for _ in range(60)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    for what, name in (("policy", family), ("reward", REWARD[family])):
        model = small_model(name, len(tokenizer), scorer=what == "reward", **DROPOUT.get(name, {}))
        if what == "policy":  # end tokens often enough for responses of different lengths
            with torch.no_grad():
                model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 4
        model.save_pretrained(folder / family / what)
        tokenizer.save_pretrained(folder / family / what)
    return (*SETTINGS, *(f"{what}.path={folder / family / what}" for what in ("policy", "reward")))


def assert_same_trajectory(one: Path, two: Path) -> None:
    """Metrics, samples and final weights, relative to their scale where that is above 1."""

    def same(a: dict, b: dict, where: object) -> None:  # type: ignore[type-arg]
        assert a.keys() == b.keys()
        for name, value in a.items():
            expected = pytest.approx(value, abs=TOLERANCE, rel=TOLERANCE) if isinstance(value, float) else value
            assert b[name] == expected, (where, name)

    assert len(rows(one)) == 4
    for a, b in zip(rows(one), rows(two), strict=True):
        same(timeless(a), timeless(b), a["step"])
    for a, b in zip(rows(one, "samples.jsonl"), rows(two, "samples.jsonl"), strict=True):
        same(a, b, a)
    for file in ("policy/model.safetensors", "reward_model/feedback.safetensors"):
        ours, theirs = (load_file(run / file) for run in (one, two))
        names = [name for name in ours if not name.endswith(WITHOUT_GRADIENT)]
        gap, size = (
            torch.cat([v.flatten() for v in values]).norm()
            for values in ([ours[name] - theirs[name] for name in names], [ours[name] for name in names])
        )
        assert gap <= TOLERANCE * size, file


def assert_a_lesson(run: Path, policy: Path) -> None:
    """What the comparison stands on: lengths differ within groups, and both models move by more than the tolerance."""
    for step in (1, 2, 3):
        samples = [row for row in rows(run, "samples.jsonl") if row["step"] == step]
        lengths = {(str(row["prompt"]), len(row["response"])) for row in samples}
        assert len(lengths) > len({prompt for prompt, _ in lengths})
    metrics = rows(run)[1:]
    assert max(abs(row["kl"]) for row in metrics) > 100 * TOLERANCE
    assert max(abs(row["reward"] - row["reward_frozen"]) for row in metrics) > 100 * TOLERANCE
    before, after = (load_file(folder / "model.safetensors") for folder in (policy, run / "policy"))
    gap, size = (
        torch.cat([v.flatten() for v in values]).norm()
        for values in ([after[name] - before[name] for name in before], before.values())
    )
    assert gap > 10 * TOLERANCE * size


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES]
)
def test_one_process_takes_the_same_steps(r2m: Run, tmp_path: Path, family: str) -> None:
    settings = write_models(tmp_path, family)
    r2m("train", *settings, "hydra.run.dir=shared")
    r2m("train", *settings, "engine.attention=padded", "hydra.run.dir=padded")
    for run, asked in (("shared", False), ("padded", True)):
        log = tmp_path / run / "warnings.log"
        said = log.read_text() if log.exists() else ""
        for what in ("policy", "reward model"):
            assert (f"the {what} reads every prompt once per response: engine.attention=padded" in said) == asked
            assert "cannot share" not in said
    assert_a_lesson(tmp_path / "shared", tmp_path / family / "policy")
    assert_same_trajectory(tmp_path / "shared", tmp_path / "padded")


@pytest.mark.slow
def test_two_ranks_take_the_same_steps(r2m: Run, environment: dict[str, str], tmp_path: Path) -> None:
    """ZeRO-2 and ZeRO-3, against each other's layout and against the single process."""
    runs, families = [], [name for name in FAMILIES if "window" not in name]
    for family in families:
        r2m("train", *write_models(tmp_path, family), f"hydra.run.dir=one/{family}")
        config = yaml.safe_load((tmp_path / "one" / family / "config.yaml").read_text())
        config["data"]["path"] = str(tmp_path / "prompts.jsonl")
        for stage in (2, 3):
            for attention in ("sdpa", "padded"):
                config["engine"] |= {"kind": "zero", "num_processes": 2, "stage": stage, "attention": attention}
                run = tmp_path / f"{family}-{stage}-{attention}"
                run.mkdir()
                (run / "config.yaml").write_text(yaml.safe_dump(config))
                runs.append(run)
    ranks_of_many(environment, runs)
    for family in families:
        for stage in (2, 3):
            shared, padded = (tmp_path / f"{family}-{stage}-{attention}" for attention in ("sdpa", "padded"))
            assert_same_trajectory(shared, padded)
            assert_same_trajectory(tmp_path / "one" / family, shared)
