"""PPO's critic learns the returns of the step, in as many passes as the policy makes."""

from r2m_cli.batch import Trainable, micro_batches
from r2m_cli.distributed.comm import MetricSums
from r2m_cli.distributed.engine import Engine
from r2m_cli.maths.value_loss import value_loss
from r2m_cli.schema import PpoConfig
from r2m_cli.stages.annotate import values


def critic_step(critic: Engine, batch: Trainable, config: PpoConfig, micro_groups: int, lr: float) -> MetricSums:
    """Update the critic. Raises FloatingPointError if a gradient is not finite."""
    annotated, rollout = batch.annotated, batch.annotated.rollout
    old, returns = annotated.values, batch.returns
    assert old is not None
    assert returns is not None
    sequences = len(rollout.responses)
    per_update = sequences // config.mini_batches
    metrics = MetricSums()
    for _ in range(config.epochs):
        for start in range(0, sequences, per_update):
            for offset in micro_batches(per_update, rollout.group_size, micro_groups):
                part = slice(start + offset.start, start + offset.stop)
                new = values(critic, rollout, part)
                width = new.shape[1]
                columns = (old[part, :width], returns[part, :width], annotated.mask[part, :width])
                loss = value_loss(new, *columns, config.critic.clip)
                # A missing reward teaches nothing; its row stays, so that every rank makes the same passes.
                total = loss.total * annotated.valid.view(-1)[part]
                critic.backward(total.sum() / per_update)
                metrics.add("critic/loss", total)
                metrics.add("critic/clip_ratio", loss.clipped)
            metrics.add("critic/grad_norm", critic.step(lr))
    metrics.add("critic/value", old[annotated.mask])
    metrics.add("critic/return", returns[annotated.mask])
    return metrics
