"""What R2M costs: against the same loop without it, and its light update against retraining the whole reward model.

python experiments/speed/overhead.py [--quick]
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from common import Results, Worker, seconds, spread
from models import LAYERS, WORKLOADS, one_thread
from r2m_worker import STAGES, actors_of

from r2m_cli.maths.reward_loss import grebt
from r2m_cli.models.reward_backbone import RewardBackbone, find_head
from r2m_cli.models.sequences import pad
from r2m_cli.seeds import Stream
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.packing import pack
from r2m_cli.stages.reward_step import RewardStep
from r2m_cli.stages.rollout import rollout

WORK = "summarise"
SHALLOW, QUICK_SHALLOW = 4, 2  # layers of the model on which small differences can be told within minutes
QUICK_LAYERS = 6  # those of the light update, otherwise all


def run(quick: bool) -> Results:
    """Time and peak memory of R2M over vanilla in percent; each stage's share of a step; full over light update."""
    return against_vanilla(quick) | light_update(quick)


def against_vanilla(quick: bool) -> Results:
    """Two processes that differ in `feedback` alone take turns, A B B A."""
    percent, shares, own = [], [], []
    layers = QUICK_SHALLOW if quick else SHALLOW
    with _pair(layers) as (vanilla, r2m):
        for number in range(3 if quick else 21):
            first, second = (vanilla, r2m) if number % 2 else (r2m, vanilla)
            answers = {id(worker): worker.step() for worker in (first, second)}
            base, ours = answers[id(vanilla)], answers[id(r2m)]
            if number:  # the first is a warm-up
                percent.append(100 * (ours[0] / base[0] - 1))
                shares.append([100 * part / ours[0] for part in ours[1:-2]])
                own.append(100 * ours[-2] / (ours[0] - ours[-2]))
    # Peak memory in processes of their own, whose allocator gives every large tensor back at once: else how it happens
    # to keep them moves the peak by more than what is measured.
    with _pair(layers, MALLOC_MMAP_THRESHOLD_="65536") as (vanilla, r2m):
        memory = [100 * (r2m.step()[-1] / vanilla.step()[-1] - 1) for _ in range(1 if quick else 6)]
    print(f"  R2M over vanilla: time {spread(percent)['median']} %, peak memory {memory[-1]:.2f} %", flush=True)
    results = {"r2m_overhead.time_percent": spread(percent), "r2m_overhead.memory_percent": spread(memory)}
    results["r2m_overhead.own_code_percent"] = spread(own)  # a stopwatch around it: no difference of two noisy steps
    return results | {f"stage_percent.{name}": spread(column) for name, column in zip(STAGES, zip(*shares))}


@contextmanager
def _pair(layers: int, **environment: str) -> Iterator[tuple[Worker, Worker]]:
    workers = [Worker("r2m_worker.py", WORK, layers, f"feedback={kind}", **environment) for kind in ("none", "r2m")]
    try:
        yield workers[0], workers[1]
    finally:
        for worker in workers:
            worker.close()


def light_update(quick: bool) -> Results:
    """Seconds of retraining the whole reward model over those of R2M's update, on the same step's sequences."""
    one_thread()
    work = WORKLOADS[WORK]
    actors, source, config = actors_of(work, QUICK_LAYERS if quick else LAYERS, [])
    batch = rollout(
        actors,
        source.prompts[: work.prompts],
        range(work.prompts),
        work.group_size,
        config.rollout,
        0,
        Stream.ROLLOUT,
        1,
    )
    (packs,) = pack(batch, config.rollout.tokens_per_batch)
    annotated = annotate(actors, batch, packs, 0.7, config.rollout.temperature)
    with torch.no_grad():  # in a run these come from the policy's last epoch
        states = [actors.policy(p.sequences, config.rollout.temperature).states for p in packs]

    def light() -> None:
        step = RewardStep(actors, annotated, config.feedback, 0.7)
        for p, fresh in zip(packs, states):
            step.consume(p, fresh)
        step.update(1e-6)

    classifier = copy.deepcopy(actors.reward.backbone.classifier).requires_grad_(True)
    backbone = RewardBackbone(classifier)
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-6, fused=True)
    chat = actors.reward.format
    tokens, lengths = pad([chat.conversation_ids(*row) for row in zip(batch.prompt_of, batch.responses)], chat.pad_id)

    def full() -> None:  # with the prompt shared as well: it is no straw man
        rewards = find_head(backbone)(backbone(tokens, lengths, work.group_size)).view(-1, work.group_size)
        grebt(rewards, config.feedback.alpha).total.mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    light()
    full()
    entry = spread([seconds(full) / seconds(light) for _ in range(2 if quick else 7)])
    print(f"  full retraining over light update: {entry['median']}", flush=True)
    return {"rm_update.full_over_light": entry}


if __name__ == "__main__":
    for key, entry in run("--quick" in sys.argv).items():
        print(key, entry)
