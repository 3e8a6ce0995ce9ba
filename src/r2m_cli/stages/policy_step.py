"""Stage 3: k epochs of the clipped objective (Algorithm 1, line "policy optimisation")."""

from collections.abc import Callable

import torch

from r2m_cli.batch import Trainable
from r2m_cli.config.schema import PpoConfig
from r2m_cli.distributed import comm
from r2m_cli.distributed.comm import MetricSums
from r2m_cli.maths.policy_loss import policy_loss
from r2m_cli.models.actors import Actors
from r2m_cli.models.states import States
from r2m_cli.stages.packing import Pack

FreshStates = Callable[[Pack, States], None]


def policy_step(
    actors: Actors,
    batch: Trainable,
    packs: list[list[Pack]],
    config: PpoConfig,
    temperature: float,
    lr: float,
    on_fresh_states: FreshStates | None,
) -> MetricSums:
    """Update the policy.

    The last epoch's forwards pass their hidden states to `on_fresh_states`, pack by pack, and do not keep them: the fresh
    feedback costs no extra forward and no extra memory.

    Args:
        packs: the packs of each mini-batch.

    Raises FloatingPointError if a loss or a gradient is not finite; the policy must then be discarded.
    """  # fmt: skip
    annotated, rollout = batch.annotated, batch.annotated.rollout
    advantages = batch.advantages
    ref_logp = annotated.ref_logp if config.kl_in == "loss" else None
    per_update = len(rollout.responses) // len(packs)
    metrics = MetricSums()

    for epoch in range(config.epochs):
        for mini_batch in packs:
            finite = []  # read once per mini-batch: every look waits for the device
            for pack in mini_batch:
                output = actors.policy(pack.sequences, temperature, with_entropy=config.entropy_bonus > 0)
                part, width = pack.rows, output.logp.shape[1]
                loss = policy_loss(
                    output.logp,
                    annotated.old_logp[part][:, :width],
                    ref_logp[part][:, :width] if ref_logp is not None else None,
                    annotated.mask[part][:, :width],
                    advantages[part] if advantages.dim() == 1 else advantages[part][:, :width],
                    level=config.ratio,
                    clip_low=config.clip_low,
                    clip_high=config.clip_high,
                    dual_clip=config.dual_clip,
                    beta=config.beta,
                    estimator=config.kl_estimator,
                    entropy=output.entropy,
                    entropy_bonus=config.entropy_bonus,
                )
                actors.policy.backward(loss.total.sum() / per_update)
                metrics.add("loss", loss.total)
                metrics.add("policy/kl_loss", loss.kl)
                metrics.add("ratio_mean", loss.ratio)
                metrics.add("clip_ratio/region_mean", loss.clipped)
                if on_fresh_states is not None and epoch == config.epochs - 1:
                    on_fresh_states(pack, output.states)
                finite.append(loss.total.isfinite().all())
            if comm.max_over_ranks(float(not torch.stack(finite).all())):
                raise FloatingPointError("the policy's loss is not a finite number")
            metrics.add("grad_norm", actors.policy.step(lr))
    return metrics
