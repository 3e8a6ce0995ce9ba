"""Every optimiser with every feedback variant: two steps on the tiny world, in one process and in two ranks."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import QUICK, Run, ranks_of_many, rows
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from test_distributed import assert_same_training
from transformers import AutoModelForCausalLM

from r2m_cli.build import build_reward
from r2m_cli.config.check import typed
from r2m_cli.config.registry import ESTIMATORS, FEEDBACKS

# Everything at once that may stand beside a method.
OPTIONS = {
    "labels": (
        "feedback.warmup_pairs=7", "feedback.warmup_epochs=2", "feedback.replay_pairs=3", "feedback.judge=gold",
        "feedback.judge_pairs=3",
    ),
    "by_heart": (  # the first pass is kept of these
        "feedback.warmup_pairs=3", "feedback.warmup_epochs=12", "feedback.warmup_lr=0.03", "eval.reward_check_pairs=32",
    ),
    "shaping": (
        "ppo=grpo", "feedback=none", "ppo.reward_clip=1", "ppo.eos_penalty=0.5", "ppo.whiten_rewards=true",
        "ppo.entropy_bonus=0.01", "ppo.kl_in=reward", "ppo.normalise=whiten",
    ),
    "lora": ("policy.lora_rank=4",),
    "constant": ("feedback.schedule=constant", "feedback.pair=annotated", "feedback.alpha=0"),
}  # fmt: skip
COMMON = (*QUICK, "rollout.tokens_per_batch=1", "eval.prompts=4", "eval.reward_check_pairs=4")


def cases() -> dict[str, tuple[str, ...]]:
    products = {f"{p}-{f}": (f"ppo={p}", f"feedback={f}") for p in ESTIMATORS for f in FEEDBACKS}
    return products | OPTIONS


@pytest.mark.parametrize(
    "case", [*(f"{p}-r2m" for p in ESTIMATORS), *(f"rloo-{f}" for f in FEEDBACKS if f != "r2m"), *OPTIONS]
)
def test_one_process_takes_two_steps(r2m: Run, tmp_path: Path, case: str) -> None:
    done = r2m("train", *COMMON, *cases()[case], "hydra.run.dir=run")
    assert ("pass kept 1" in done.stdout) == (case == "by_heart")
    last = rows(tmp_path / "run")[-1]
    assert last["step"] == 2
    feedback = FEEDBACKS.get(case.split("-")[-1], FEEDBACKS["none" if case == "shaping" else "r2m"])
    assert ("reward_model/loss" in last) == feedback.learns
    assert ("critic/loss" in last) == case.startswith("ppo-")


def test_frozen_feedback_leaves_adapter_and_head_as_they_were(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *COMMON, "feedback=frozen", "hydra.run.dir=run")
    config = typed(OmegaConf.load(tmp_path / "run" / "config.yaml"))
    fresh = build_reward(config, 64, torch.device("cpu")).feedback
    assert fresh is not None
    left = load_file(tmp_path / "run" / "reward_model" / "feedback.safetensors")
    for name, value in fresh.module.state_dict().items():
        assert torch.equal(left[name], value), name
    last = rows(tmp_path / "run")[-1]
    assert last["reward"] != last["reward_frozen"], "and yet the states were read"


def test_head_only_changes_the_head_and_nothing_else(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *COMMON, "feedback=head_only", "hydra.run.dir=run")
    start = Path(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["reward"]["path"])
    before, after = (load_file(f / "model.safetensors") for f in (start, tmp_path / "run" / "reward_model"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"score.weight"}
    left = load_file(tmp_path / "run" / "reward_model" / "feedback.safetensors")
    assert set(left) == {"phi.weight"}
    assert torch.equal(left["phi.weight"], after["score.weight"])


@pytest.mark.long
def test_lora_leaves_the_adapters_and_the_merged_policy(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *COMMON, "policy.lora_rank=4", "hydra.run.dir=run")
    start = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["policy"]["path"]
    tokens = torch.arange(3, 12)[None]
    base = AutoModelForCausalLM.from_pretrained(start)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "policy")
    with torch.no_grad():
        plain = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "run" / "policy_adapter")(tokens).logits
        torch.testing.assert_close(merged(tokens).logits, adapted, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain, adapted, atol=1e-4)
    assert rows(tmp_path / "run")[0]["eval/kl"] == pytest.approx(0, abs=1e-5), "the base is the reference"
    r2m("evaluate", "run=run", "hydra.run.dir=evaluation")


@pytest.mark.slow
def test_two_ranks_equal_one_process_in_every_method(r2m: Run, environment: dict[str, str], tmp_path: Path) -> None:
    for case, overrides in cases().items():
        r2m("train", *COMMON, *overrides, f"hydra.run.dir=one/{case}")
        config = yaml.safe_load((tmp_path / "one" / case / "config.yaml").read_text())
        config["engine"] |= {"kind": "zero", "num_processes": 2, "stage": 2}
        (tmp_path / "two" / case).mkdir(parents=True)
        (tmp_path / "two" / case / "config.yaml").write_text(yaml.safe_dump(config))
    ranks_of_many(environment, [tmp_path / "two" / case for case in cases()])
    for case in cases():
        assert_same_training(tmp_path / "one" / case, tmp_path / "two" / case, 3e-4)
