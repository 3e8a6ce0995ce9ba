"""What a step tells the person who watches: its metrics, samples, times."""

import math
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from r2m_cli.batch import Annotated, Rollout
from r2m_cli.distributed import comm
from r2m_cli.distributed.comm import MetricSums
from r2m_cli.maths import kl
from r2m_cli.maths.masking import masked_sum
from r2m_cli.monitor.alerts import Watch
from r2m_cli.monitor.catalogue import check_names
from r2m_cli.monitor.sinks import Sinks


class Timer:
    """Wall seconds of a step and of its stages; `began` is told the name of each stage that begins."""

    def __init__(self, began: Callable[[str], None] | None = None) -> None:
        self._began = began
        self._start = perf_counter()
        self._stages: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._began is not None:
            self._began(stage)
        start = perf_counter()
        yield
        self._stages[f"time/{stage}"] = perf_counter() - start

    def shift(self, stage: str, to: str, seconds: float) -> None:
        """Count `seconds` that were spent inside one stage as another's."""
        self._stages[f"time/{stage}"] -= seconds
        self._stages[f"time/{to}"] += seconds

    def seconds(self) -> dict[str, float]:
        """Seconds per stage and of the whole step so far; the slowest rank's. Collective."""
        mine = self._stages | {"step_time": perf_counter() - self._start}
        every = comm.gather(mine)
        return {name: max(rank[name] for rank in every) for name in mine}


def rollout_metrics(annotated: Annotated) -> MetricSums:
    """The metrics of a training step's rollouts."""
    rollout, metrics = annotated.rollout, MetricSums()
    metrics.add("reward", annotated.rewards)
    metrics.add("reward_frozen", annotated.frozen_rewards)
    metrics.add("frac_reward_missing", (~annotated.valid).float())
    metrics.add("reward_model/cut_ratio", annotated.cut.float())
    if rollout.group_size > 1:
        std = annotated.rewards.std(dim=1)
        metrics.add("reward_std", std)
        metrics.add("frac_reward_zero_std", (std < 1e-6).float())
    if annotated.gold is not None:
        metrics.add("gold", annotated.gold)
        _add_order(metrics, "reward_model/accuracy", annotated.rewards, annotated.gold)
        _add_order(metrics, "reward_model/accuracy_frozen", annotated.frozen_rewards, annotated.gold)
    if annotated.ref_logp is not None:
        metrics.add("kl", sequence_kl(annotated))
    metrics.add("entropy", annotated.entropy[annotated.mask])
    metrics.add("completions/mean_length", rollout.response_lengths.float())
    metrics.add("completions/clipped_ratio", 1 - torch.tensor(rollout.finished).float())
    if len(annotated.attention_entropy):
        read = annotated.valid.flatten()  # where the reward is missing these may be too
        metrics.add("feedback/attention_entropy", annotated.attention_entropy[read])
        metrics.add("feedback/adapter_scale", annotated.adapter_scale[read])
    return metrics


def evaluation_metrics(annotated: Annotated) -> MetricSums:
    """The metrics of the fixed evaluation prompts."""
    rollout, metrics = annotated.rollout, MetricSums()
    metrics.add("eval/reward", annotated.rewards[annotated.valid])
    metrics.add("eval/reward_frozen", annotated.frozen_rewards[annotated.valid])
    if annotated.gold is not None:
        metrics.add("eval/gold", annotated.gold)
    if annotated.ref_logp is not None:
        metrics.add("eval/kl", sequence_kl(annotated))
    metrics.add("eval/length", rollout.response_lengths.float())
    metrics.add("eval/finished", torch.tensor(rollout.finished).float())
    metrics.add("eval/repetition", torch.tensor([repetition(text) for text in rollout.responses]))
    return metrics


def repetition(text: str) -> float:
    """Share of the words of a text that it has said before; 0 for an empty one."""
    words = text.split()
    return 1 - len(set(words)) / len(words) if words else 0.0


def sequence_kl(annotated: Annotated) -> Tensor:
    """k1 estimate of KL(policy || reference) per sequence, summed over the response. [B], nats."""
    assert annotated.ref_logp is not None
    return masked_sum(kl.k1(annotated.old_logp, annotated.ref_logp), annotated.mask)


def _add_order(metrics: MetricSums, name: str, rewards: Tensor, gold: Tensor) -> None:
    """Share of the within-group pairs of different gold that the rewards order as gold does. [n, K] each."""
    order = (gold[:, :, None] - gold[:, None, :]).sign()
    same = (rewards[:, :, None] - rewards[:, None, :]).sign() == order
    metrics.add(name, same[order > 0].float())


@dataclass
class Observer:
    """Hands each step's numbers to the sinks. On ranks other than the main one it computes and shows nothing."""

    sinks: Sinks | None  # None on every rank but the main one
    samples_every: int
    tokens: int = 0  # prompt and response tokens of all steps so far, all ranks
    beta: float | None = None  # where ppo.kl_target has moved the KL weight to; None: ppo.beta
    begun: float = field(
        default_factory=perf_counter
    )  # perf_counter() at the run's start, had it never been interrupted
    origin: dict[str, Any] = field(default_factory=dict)  # the run's configuration and inputs, for its checkpoints
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    watch: Watch = field(default_factory=Watch)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to know of the steps so far."""
        return {"tokens": self.tokens, "beta": self.beta, "seconds": perf_counter() - self.begun, **self.origin}

    def stage(self, name: str) -> None:
        """Show that a stage begins."""
        if self.sinks is not None:
            self.sinks.stage(name)

    def row(
        self, step: int, values: dict[str, float], timer: Timer | None = None, annotated: Annotated | None = None
    ) -> None:
        """Log one step. Collective."""
        if timer is not None and annotated is not None:
            times = timer.seconds()
            tokens = step_tokens(annotated.rollout)
            self.tokens += tokens
            values = values | times | {"num_tokens": float(self.tokens)}
            values["perf/tokens_per_second"] = tokens / times["step_time"]
            values["perf/peak_memory_bytes"] = comm.max_over_ranks(peak_memory())
            if self.samples_every and (step % self.samples_every == 0 or step == 1):
                self._samples(step, annotated)
        check_names(values)
        self.history.append((step, values))
        if self.sinks is not None:
            self.sinks.metrics(step, values)
        for message in self.watch(step, values):
            self.warn(message)

    def _samples(self, step: int, annotated: Annotated) -> None:
        mine = zip(annotated.rollout.group_id_of, sample_rows(annotated))
        rows = [row for rank in comm.gather(list(mine)) for row in rank]
        rows = [row for _, row in sorted(rows, key=lambda pair: pair[0])]  # as in one process
        if self.sinks is not None:
            self.sinks.samples(step, rows)

    def warn(self, message: str, word: str = "warning") -> None:
        """Show a warning (or a note) once."""
        if self.sinks is not None:
            self.sinks.warn(message, word)


def step_tokens(rollout: Rollout) -> int:
    """Prompt and response tokens of a step over all ranks; a prompt counts once per response. Collective."""
    return int(sum(comm.gather(int((rollout.prompt_lengths + rollout.response_lengths).sum()))))


def peak_memory() -> float:
    """Largest memory of this rank so far in bytes: the GPU allocator's, or the process's resident set on a CPU."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmHWM"):  # Linux: getrusage counts what the parent held when it started this process
            return 1024.0 * float(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def sample_rows(annotated: Annotated) -> list[dict[str, Any]]:
    """The rollout as rows for samples.jsonl: prompt, response, rewards."""
    rollout = annotated.rollout
    kls = sequence_kl(annotated) if annotated.ref_logp is not None else torch.full((len(rollout.responses),), math.nan)
    columns = {
        "reward": annotated.rewards.flatten(),
        "reward_frozen": annotated.frozen_rewards.flatten(),
        "kl": kls,
    } | ({"gold": annotated.gold.flatten()} if annotated.gold is not None else {})
    return [
        {"prompt": [dict(m) for m in prompt], "response": response, "finished": finished}
        | {name: round(float(values[i]), 6) for name, values in columns.items()}
        for i, (prompt, response, finished) in enumerate(zip(rollout.prompt_of, rollout.responses, rollout.finished))
    ]
