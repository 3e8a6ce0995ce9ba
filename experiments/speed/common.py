"""What every benchmark here shares: how a figure and its spread are written down, and how processes take turns."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

HERE = Path(__file__).parent
Entry = dict[str, float]
Results = dict[str, Entry]


def spread(values: Sequence[float]) -> Entry:
    """A measured figure with its spread over the rounds, as results.json holds it."""
    return {
        "median": round(median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "rounds": len(values),
    }


def seconds(function: Callable[[], object]) -> float:
    """Wall seconds of one call, with all the work that it gave to a GPU."""
    wait()
    begun = perf_counter()
    function()
    wait()
    return perf_counter() - begun


def wait() -> None:
    """Until a GPU, where there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Worker:
    """A process that makes one step whenever it is told to; in between it sleeps, so that others measure undisturbed."""

    def __init__(self, script: str, *arguments: object, **environment: str):
        answers, theirs = os.pipe()
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "R2M_SPEED_ANSWERS": str(theirs)} | environment
        self._errors = (Path(os.environ.get("TMPDIR", "/tmp")) / f"r2m-speed-{os.getpid()}-{id(self)}.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=self._errors, stderr=self._errors, text=True, env=os.environ | environment,
            pass_fds=[theirs],
        )  # fmt: skip
        os.close(theirs)
        self._answers = os.fdopen(answers)

    @property
    def process(self) -> int:
        """Its number."""
        return self._process.pid

    def step(self) -> list[float]:
        """What the worker answers after one step: its seconds first."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._answers.readline()
        if not answer:
            self._errors.seek(0)
            raise SystemExit(f"the worker {self._process.args} died:\n{self._errors.read()[-3000:]}")
        return [float(value) for value in answer.split()]

    def close(self) -> None:
        """No more steps."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        self._errors.close()
        Path(self._errors.name).unlink()
