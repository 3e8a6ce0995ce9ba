"""Stage 3: k epochs of the clipped objective (Algorithm 1, line "policy optimisation")."""

from collections.abc import Callable

from torch import Tensor

from r2m_cli.batch import Trainable, micro_batches
from r2m_cli.distributed import comm
from r2m_cli.distributed.comm import MetricSums
from r2m_cli.maths.policy_loss import policy_loss
from r2m_cli.models.actors import Actors
from r2m_cli.schema import PpoConfig
from r2m_cli.stages.annotate import forward

# Takes a slice of whole groups, their hidden states [B, S-1, D_p] and mask [B, S-1].
FreshStates = Callable[[slice, Tensor, Tensor], None]


def policy_step(
    actors: Actors,
    batch: Trainable,
    config: PpoConfig,
    temperature: float,
    micro_groups: int,
    lr: float,
    on_fresh_states: FreshStates | None,
) -> MetricSums:
    """Update the policy.

    The last epoch's forwards hand their hidden states to `on_fresh_states`, micro-batch by micro-batch, and nothing
    keeps them: the fresh feedback costs no forward and no memory of its own.

    Raises FloatingPointError if a loss or a gradient is not finite; the policy is then to be thrown away.
    """  # fmt: skip
    annotated, rollout = batch.annotated, batch.annotated.rollout
    advantages = batch.advantages
    ref_logp = annotated.ref_logp if config.kl_in == "loss" else None
    sequences = len(rollout.responses)
    per_update = sequences // config.mini_batches
    metrics = MetricSums()

    for epoch in range(config.epochs):
        for start in range(0, sequences, per_update):
            finite = True
            for offset in micro_batches(per_update, rollout.group_size, micro_groups):
                part = slice(start + offset.start, start + offset.stop)
                output = forward(actors.policy, rollout, part, temperature, with_entropy=config.entropy_bonus > 0)
                width = output.logp.shape[1]
                loss = policy_loss(
                    output.logp,
                    annotated.old_logp[part, :width],
                    ref_logp[part, :width] if ref_logp is not None else None,
                    annotated.mask[part, :width],
                    advantages[part] if advantages.dim() == 1 else advantages[part, :width],
                    level=config.ratio,
                    clip_low=config.clip_low,
                    clip_high=config.clip_high,
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
                    on_fresh_states(part, output.hidden, output.hidden_mask)
                finite &= bool(loss.total.isfinite().all())
            if comm.max_over_ranks(float(not finite)):
                raise FloatingPointError("the policy's loss is not a finite number")
            metrics.add("grad_norm", actors.policy.step(lr))
    return metrics
