"""Reports a step to the user: its metrics, samples and times."""

import math
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from r2m_cli.batch import Annotated, Rollout
from r2m_cli.distributed import comm
from r2m_cli.monitor.alerts import Watch
from r2m_cli.monitor.catalogue import check_names
from r2m_cli.monitor.sinks import Sinks

Moment = Any  # seconds of perf_counter on a CPU, a torch.cuda.Event on a GPU


class Timer:
    """Wall seconds of a step and of its stages: `with timer("rollout"):`, or `timer("rollout")(function)`.

    The time of a nested stage is subtracted from the stage around it; `began` is called with the name of each outermost stage.
    On a GPU, which runs behind the program, a stage lasts until its work there is done: it is timed by events in the GPU's
    stream, so that no stage has to wait for it.
    """

    def __init__(self, began: Callable[[str], None] | None = None, device: torch.device | None = None) -> None:
        self._began = began
        self._device = device if device is not None and device.type == "cuda" else None
        self._start = perf_counter()
        self._spans: list[tuple[str, str | None, Moment, Moment]] = []  # stage, the one around it, start, end
        self._open: list[str] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._began is not None and not self._open:
            self._began(stage)
        around = self._open[-1] if self._open else None
        self._open.append(stage)
        start = self._now()
        yield
        self._open.pop()
        self._spans.append((stage, around, start, self._now()))

    def _now(self) -> Moment:
        if self._device is None:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _seconds(self) -> dict[str, float]:
        """Of each stage. Waits for the device."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        stages: dict[str, float] = defaultdict(float)
        for stage, around, start, end in self._spans:
            spent = end - start if isinstance(end, float) else start.elapsed_time(end) / 1000
            stages[stage] += spent
            if around is not None:
                stages[around] -= spent
        return stages

    def metrics(self, tokens: int) -> dict[str, float]:
        """Cost of a step with `tokens` tokens so far: seconds per stage and in total, and memory; the largest over all ranks.
        Collective."""
        mine = {f"time/{stage}": seconds for stage, seconds in self._seconds().items()}
        mine |= {"step_time": perf_counter() - self._start, "perf/peak_memory_bytes": peak_memory()}
        every = comm.gather(mine)
        most = {name: max(rank[name] for rank in every) for name in mine}
        return most | {"perf/tokens_per_second": tokens / most["step_time"]}


@dataclass
class Observer:
    """Passes each step's numbers to the sinks. Only the main rank has sinks and shows anything."""

    sinks: Sinks | None  # None on every rank but the main one
    samples_every: int
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    watch: Watch = field(default_factory=Watch)

    def stage(self, name: str) -> None:
        """Show that a stage begins."""
        if self.sinks is not None:
            self.sinks.stage(name)

    def row(self, step: int, values: dict[str, float], annotated: Annotated | None = None) -> None:
        """Log one step, and every `samples_every` steps its samples. Collective."""
        if annotated is not None and self.samples_every and (step % self.samples_every == 0 or step == 1):
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
        rows = [row for _, row in sorted(rows, key=lambda pair: pair[0])]  # the same order as in a single process
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
        if line.startswith("VmHWM"):  # Linux: getrusage also counts the parent's memory at the start of this process
            return 1024.0 * float(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def sample_rows(annotated: Annotated) -> list[dict[str, Any]]:
    """The rollout as rows for samples.jsonl: prompt, response, rewards."""
    rollout = annotated.rollout
    kls = annotated.kl if annotated.kl is not None else torch.full((len(rollout.responses),), math.nan)
    columns = {
        "reward": annotated.rewards.flatten(),
        "reward_frozen": annotated.frozen_rewards.flatten(),
        "kl": kls,
    }
    if annotated.function_rewards is not None:
        columns["reward_function"] = annotated.function_rewards.flatten()
    columns |= {"gold": annotated.gold.flatten()} if annotated.gold is not None else {}
    return [
        {"prompt": [dict(m) for m in prompt], "response": response, "finished": finished}
        | {name: round(float(values[i]), 6) for name, values in columns.items()}
        for i, (prompt, response, finished) in enumerate(zip(rollout.prompt_of, rollout.responses, rollout.finished))
    ]
