"""Train PPO's critic on the returns of the step, with as many passes as the policy."""

from r2m_cli.batch import Trainable
from r2m_cli.config.schema import PpoConfig
from r2m_cli.distributed.comm import MetricSums
from r2m_cli.distributed.engine import Engine
from r2m_cli.maths.value_loss import value_loss
from r2m_cli.stages.packing import Pack


def critic_step(critic: Engine, batch: Trainable, packs: list[list[Pack]], config: PpoConfig, lr: float) -> MetricSums:
    """Update the critic. Raises FloatingPointError if a gradient is not finite."""
    annotated, rollout = batch.annotated, batch.annotated.rollout
    old, returns = annotated.values, batch.returns
    assert old is not None
    assert returns is not None
    per_update = len(rollout.responses) // len(packs)
    metrics = MetricSums()
    for _ in range(config.epochs):
        for mini_batch in packs:
            for pack in mini_batch:
                new = critic(pack.sequences)
                part, width = pack.rows, new.shape[1]
                before, wanted, mask = (table[part][:, :width] for table in (old, returns, annotated.mask))
                loss = value_loss(new, before, wanted, mask, config.critic.clip)
                # A response without a reward is masked out; its row stays, so that every rank makes the same forwards.
                total = loss.total * annotated.valid.view(-1)[part]
                critic.backward(total.sum() / per_update)
                metrics.add("critic/loss", total)
                metrics.add("critic/clip_ratio", loss.clipped)
            metrics.add("critic/grad_norm", critic.step(lr))
    metrics.add("critic/value", old[annotated.mask])
    metrics.add("critic/return", returns[annotated.mask])
    return metrics
