"""Where the sampler's probabilities are not the trainer's: how far they lie apart, and the correction for it."""

from dataclasses import replace

import torch
from torch.nn.utils.rnn import pad_sequence

from r2m_cli.batch import Annotated, Trainable
from r2m_cli.distributed import comm
from r2m_cli.distributed.comm import MetricSums
from r2m_cli.maths.importance import log_weights, truncated


def corrected(batch: Trainable, level: str, cap: float | None) -> tuple[Trainable, dict[str, float]]:
    """The batch with each advantage times its importance weight, and the metrics of the mismatch. Collective.

    The clipped objective is linear in the advantage where that keeps its sign, so this weights the objective itself; KL and
    entropy terms and the critic's returns stay as they are. Responses of r2m's own sampler are left alone, without metrics.

    Args:
        level: `ppo.ratio`: a weight per token with token, else one per response.
        cap: the largest weight; None: no correction, only metrics.
    """
    annotated, advantages = batch.annotated, batch.advantages
    sampler_logp = sampler_table(annotated)
    if sampler_logp is None:
        return batch, {}
    gaps = (annotated.old_logp - sampler_logp)[annotated.mask]
    metrics = MetricSums()
    metrics.add("rollout/logp_gap", gaps.abs())
    weights = log_weights(annotated.old_logp, sampler_logp, annotated.mask, level)
    values = metrics.means() | {"rollout/ratio_max": comm.max_over_ranks(float(weights.max().exp()))}
    if cap is None:
        return batch, values
    if level == "token" and advantages.dim() == 1:
        advantages = advantages[:, None]
    return replace(batch, advantages=truncated(weights, cap) * advantages), values


def sampler_table(annotated: Annotated) -> torch.Tensor | None:
    """The sampler's log-probabilities as a table like `old_logp`. [B, R], 0 on padding."""
    rows = annotated.rollout.sampler_logp
    if rows is None:
        return None
    device = annotated.old_logp.device
    return pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True)
