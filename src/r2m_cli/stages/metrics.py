"""Metrics of an annotated rollout: of a training step, and of the fixed evaluation prompts."""

import torch
from torch import Tensor

from r2m_cli.batch import Annotated
from r2m_cli.distributed.comm import MetricSums


def rollout_metrics(annotated: Annotated) -> MetricSums:
    """The metrics of a training step's rollouts."""
    rollout, metrics = annotated.rollout, MetricSums()
    metrics.add("reward", annotated.rewards)
    metrics.add("reward_frozen", annotated.frozen_rewards)
    if annotated.function_rewards is not None:
        metrics.add("reward_function", annotated.function_rewards[annotated.valid])
    metrics.add("frac_reward_missing", (~annotated.valid).float())
    metrics.add("reward_model/cut_ratio", annotated.cut.float())
    if rollout.group_size > 1:
        std = annotated.rewards.std(dim=1)
        metrics.add("reward_std", std)
        metrics.add("frac_reward_zero_std", (std < 1e-6).float())
    if annotated.gold is not None:
        metrics.add("gold", annotated.gold)
        metrics.add("reward_model/accuracy", ordered_as(annotated.gold, annotated.rewards))
        metrics.add("reward_model/accuracy_frozen", ordered_as(annotated.gold, annotated.frozen_rewards))
    if annotated.kl is not None:
        metrics.add("kl", annotated.kl)
    metrics.add("entropy", annotated.entropy[annotated.mask])
    metrics.add("completions/mean_length", rollout.response_lengths.float())
    metrics.add("completions/clipped_ratio", 1 - torch.tensor(rollout.finished).float())
    if len(annotated.attention_entropy):
        known = annotated.valid.flatten()  # if the reward is missing, these may be missing too
        metrics.add("feedback/attention_entropy", annotated.attention_entropy[known])
        metrics.add("feedback/adapter_scale", annotated.adapter_scale[known])
    return metrics


def evaluation_values(annotated: Annotated) -> dict[str, Tensor]:
    """Each metric of the fixed evaluation prompts, one value per response. Name -> [B]; NaN if a reward is missing."""
    rollout, valid = annotated.rollout, annotated.valid
    values = {
        "eval/reward": torch.where(valid, annotated.rewards, torch.nan),
        "eval/reward_frozen": torch.where(valid, annotated.frozen_rewards, torch.nan),
        "eval/gold": annotated.gold,
        "eval/kl": annotated.kl,
        "eval/length": rollout.response_lengths,
        "eval/finished": torch.tensor(rollout.finished),
        "eval/repetition": torch.tensor([repetition(text) for text in rollout.responses]),
    }
    return {name: column.flatten() for name, column in values.items() if column is not None}


def evaluation_metrics(annotated: Annotated) -> MetricSums:
    """The means of `evaluation_values`; a missing reward is left out."""
    metrics, valid = MetricSums(), annotated.valid.flatten()
    for name, values in evaluation_values(annotated).items():
        metrics.add(name, values[valid] if name.startswith("eval/reward") else values)
    return metrics


def repetition(text: str) -> float:
    """Share of a text's words that occurred earlier in it; 0 for an empty text."""
    words = text.split()
    return 1 - len(set(words)) / len(words) if words else 0.0


def ordered_as(gold: Tensor, rewards: Tensor) -> Tensor:
    """For each within-group pair with different gold: 1 if the rewards order it as gold does, else 0. [n, K], [n, K] -> [pairs]."""
    order = (gold[:, :, None] - gold[:, None, :]).sign()
    same = (rewards[:, :, None] - rewards[:, None, :]).sign() == order
    return same[order > 0].float()
