"""Supervised fitting on one rank or many: what `r2m sft` and `r2m reward` share."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from r2m_cli.config.schema import FitConfig
from r2m_cli.console import Count, say
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import Engine
from r2m_cli.errors import UserError
from r2m_cli.fitting.unfinished import Part
from r2m_cli.maths.schedule import learning_rate
from r2m_cli.monitor.stop import Stopped
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.text import number


def fit(
    engine: Engine,
    rows: Sequence[object],
    loss_of: Callable[[Sequence[object]], Tensor],
    config: FitConfig,
    stream: Stream,
    seed: int,
    what: str,
    micro_rows: int,
    kept: Part,
) -> float:
    """Minimise the mean loss over the rows with AdamW; returns the mean loss of the last epoch.

    Args:
        loss_of: rows -> their losses [B], computed with the engine.
        stream, seed: determine the order of the rows.
        what: the name in the progress lines.
        micro_rows: rows per forward and backward pass; gradients are accumulated over a batch.
        kept: the saved state of an earlier try, from which this one continues; new states are saved there now and then.

    Raises:
        UserError: a loss is not finite, or a batch cannot be split over the ranks.
        Stopped: the user asked to stop; the updates so far are saved.
    """  # fmt: skip
    ranks = comm.world_size()
    size = min(config.batch_size, len(rows)) // ranks
    if size < 1:
        raise UserError(
            f"{what}: batches of {min(config.batch_size, len(rows))} rows cannot be split over {ranks} ranks; use fewer ranks or a larger fit.batch_size"
        )
    updates = len(rows) // (size * ranks)
    total = updates * config.epochs
    step, before = kept.load_updates(engine)
    losses = [] if before is None else [before]
    if step:
        say(f"{what}: continuing after update {step} of {total}")
    count = Count(f"{what}, update", comm.is_main(), step)
    for epoch in range(step // updates, config.epochs):
        order = list(range(len(rows)))
        random.Random(draw_seed(stream, seed, epoch)).shuffle(order)
        losses = losses if step % updates else []
        for update in range(step % updates, updates):
            first = (update * ranks + comm.rank()) * size
            mine = order[first : first + size]
            for start in range(0, size, micro_rows):
                loss = loss_of([rows[i] for i in mine[start : start + micro_rows]])
                engine.backward(loss.sum() / size)
                losses.append(loss.detach())
            if comm.max_over_ranks(float(not losses[-1].isfinite().all())):
                raise UserError(f"{what}: the loss is not a finite number at update {step + 1}; lower its fit.lr")
            try:
                engine.step(learning_rate(step, total, config.lr, total // 20, "linear"))
            except FloatingPointError as error:
                raise UserError(f"{what}: {error} at update {step + 1}; lower its fit.lr") from error
            step += 1
            count(step, total, f", loss {number(losses[-1].mean().item(), 3)}")
            stopping = kept.stopping()
            if stopping or kept.due():
                kept.save_updates(engine, step, torch.cat(losses))
            if stopping:
                say(f"{what}: stopped after update {step} of {total}")
                raise Stopped(step)
    every = comm.gather(torch.cat(losses).mean().item())  # every rank has the same number of rows
    return sum(every) / len(every)
