"""The values that a configuration key accepts, beyond its type: choices, and the smallest and largest number."""

import re
from typing import Any

from r2m_cli.config.registry import ESTIMATORS, FEEDBACKS, WORLDS

CHOICES: dict[str, tuple[Any, ...]] = {
    "task": ("train", "sft", "reward", "evaluate", "analyze"),
    "policy.fit.parameters": ("full", "lora", "head"),
    "reward.fit.parameters": ("full", "lora", "head"),
    "reward.combine": ("mean", "worst", "uncertainty"),
    "feedback.kind": tuple(FEEDBACKS),
    "feedback.schedule": ("cosine", "constant"),
    "feedback.source": ("policy", "reference", "reward"),
    "feedback.features": ("states", "tokens", "both"),
    "feedback.query": ("reward", "learned"),
    "feedback.self_labels": ("all", "agreed", "none"),
    "feedback.judge": ("none", "gold", "labeller", "openai"),
    "feedback.pair": ("recomputed", "annotated"),
    "ppo.algorithm": tuple(ESTIMATORS),
    "ppo.ratio": ("sequence", "sequence_mean", "token"),
    "ppo.kl_in": ("loss", "reward"),
    "ppo.kl_estimator": ("k1", "k2", "k3"),
    "ppo.normalise": ("none", "scale", "whiten"),
    "ppo.lr_schedule": ("constant", "linear", "cosine"),
    "data.kind": (*WORLDS, "file"),
    "eval.judge": ("none", "reward", "gold", "openai"),
    "rollout.engine": ("native", "vllm"),
    "engine.kind": ("single", "zero"),
    "engine.stage": (0, 1, 2, 3),
    "engine.device": ("auto", "cpu", "cuda"),
    "engine.dtype": ("fp32", "bf16"),
    "engine.attention": ("sdpa", "flex", "padded"),
}
SIZE = re.compile(r"(\d{1,5})x(\d{1,4})x(\d{1,4})")  # of a fresh model: width, layers, heads
LARGEST_SIZE = (2**16, 2**10, 2**10)
# key -> smallest value allowed
AT_LEAST: dict[str, float] = {
    "train.steps": 1, "ppo.group_size": 1, "ppo.prompts_per_step": 1, "ppo.epochs": 1, "ppo.mini_batches": 1,
    "ppo.beta": 0, "ppo.lr": 0, "ppo.clip_low": 0, "ppo.clip_high": 0, "ppo.warmup_steps": 0,
    "ppo.weight_decay": 0, "ppo.max_grad_norm": 0, "feedback.dim": 1, "feedback.heads": 1, "feedback.lr": 0, "rollout.max_new_tokens": 1,
    "rollout.max_prompt_tokens": 1, "engine.num_processes": 1, "engine.num_nodes": 1, "rollout.tokens_per_batch": 1,
    "engine.threads": 1, "engine.timeout": 1, "engine.node_rank": 0, "checkpoint.every": 0, "checkpoint.keep": 1,
    "eval.every": 0, "eval.prompts": 1, "eval.pairs": 1, "logger.samples_every": 0, "reward.max_tokens": 2,
    "data.prompts": 1, "data.pairs": 2, "data.demonstrations": 1, "policy.fit.epochs": 1, "policy.fit.batch_size": 1,
    "policy.fit.lora_rank": 1, "reward.fit.epochs": 1, "reward.fit.batch_size": 1, "reward.fit.lora_rank": 1,
    "seed": 0, "data.seed": 0, "policy.fit.lr": 0, "reward.fit.lr": 0,
    "policy.lora_rank": 0, "reward.members": 1,
    "reward.uncertainty": 0, "reward.fit.centring": 0, "reward.fit.seed": 0,
    "feedback.warmup_pairs": 0, "feedback.replay_pairs": 0, "feedback.judge_pairs": 0,
    "feedback.warmup_epochs": 1, "feedback.judge_replay": 0, "reward.pretrain_epochs": 0,
    "ppo.entropy_bonus": 0, "ppo.eos_penalty": 0, "ppo.critic.lr": 0, "ppo.critic.clip": 0, "eval.reward_check_pairs": 0,
    "eval.best_of": 1, "analysis.sequences": 2, "analysis.pairs": 3, "judge.workers": 1,
}  # fmt: skip
SEEDS = ("seed", "data.seed", "reward.fit.seed")
UNIT_INTERVAL = ("feedback.omega", "feedback.alpha", "data.holdout", "ppo.critic.gae_lambda")
# The largest integer accepted: a larger one is a typo, or asks for more memory than any machine has.
LARGEST = 10**9
LARGEST_FLOAT = 1e38  # fp32 ends at 3.4e38
AT_MOST: dict[str, int] = {
    "policy.lora_rank": 2**14,
    "reward.members": 2**8,
    "feedback.dim": 2**16, "feedback.heads": 2**10, "feedback.warmup_epochs": 10**4, "policy.fit.epochs": 10**4,
    "reward.fit.epochs": 10**4, "reward.pretrain_epochs": 10**4, "policy.fit.lora_rank": 2**14, "reward.fit.lora_rank": 2**14,
    "ppo.epochs": 10**4, "ppo.group_size": 10**5, "ppo.prompts_per_step": 10**7, "ppo.mini_batches": 10**7,
    "rollout.max_new_tokens": 10**7, "rollout.max_prompt_tokens": 10**7, "reward.max_tokens": 10**7,
    "data.prompts": 10**7, "data.demonstrations": 10**7, "data.pairs": 10**7, "eval.prompts": 10**7,
    "eval.best_of": 10**6, "analysis.sequences": 10**7, "analysis.pairs": 10**7,
    "engine.num_processes": 2**12, "engine.num_nodes": 2**16, "engine.threads": 2**12, "engine.timeout": 10**7,
    "judge.workers": 2**10, "judge.timeout": 10**7,
}  # fmt: skip


def fresh_size(text: str) -> tuple[int, int, int]:
    """(width, layers, attention heads) of a fresh model, from a string such as 64x2x4. Raises ValueError with the reason."""
    read = SIZE.fullmatch(text)
    if read is None:
        raise ValueError("must be WIDTHxLAYERSxHEADS, such as 64x2x4")
    width, layers, heads = map(int, read.groups())
    if not all(1 <= number <= most for number, most in zip((width, layers, heads), LARGEST_SIZE)):
        raise ValueError(f"must lie between 1x1x1 and {'x'.join(map(str, LARGEST_SIZE))}")
    if width % (2 * heads):
        raise ValueError(
            f"the width {width} must be a multiple of twice the heads, {2 * heads}: rotary position embeddings need an even "
            "width per head"
        )
    return width, layers, heads
