"""What both tools work on: the same models, prompts of an exact length, and how a worker takes turns with the driver."""

import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch


@dataclass(frozen=True)
class Workload:
    """Lengths are forced, so that every tool does the same work in every step."""

    prompts: int  # n, prompts per RL step
    prompt_tokens: int  # P, chat template included
    response_tokens: int  # R
    group_size: int  # K


WORKLOADS = {"chat": Workload(2, 48, 64, 4), "summarise": Workload(1, 350, 50, 8)}
LAYERS = 30  # of SmolLM2-135M
EPOCHS, BETA, TEMPERATURE, LR = 2, 0.05, 0.7, 1e-6


def workload(name: str) -> Workload:
    """By name, or as n,P,R,K."""
    return WORKLOADS[name] if name in WORKLOADS else Workload(*map(int, name.split(",")))


def reward_folder(policy: Path) -> Path:
    """A reward model beside the policy: its backbone with a scoring head of fixed seed, made on the first call.

    The sampled text is no better or worse for it: here only the time counts.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from r2m_cli.files.cache import build_once

    def build(target: Path) -> None:
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1, dtype=torch.float32)
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(policy).save_pretrained(target)

    return build_once(f"speed-reward-{policy.name}", build, "making the benchmark's reward model")


def policy_folder(layers: int = LAYERS) -> Path:
    """SmolLM2-135M-Instruct, or its first layers as a model of its own: the same width at a fraction of the time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from r2m_cli.files.cache import build_once
    from r2m_cli.models import smollm2

    policy = smollm2.folder()
    if layers == LAYERS:
        return policy

    def build(target: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, num_hidden_layers=layers)
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(policy).save_pretrained(target)

    return build_once(f"speed-{policy.name}-{layers}-layers", build, "cutting the benchmark's small model")


def folders(models: int | str) -> tuple[Path, Path]:
    """Policy and reward model: so many layers of SmolLM2-135M, or policy/ and reward/ of a folder."""
    if str(models).isdigit():
        policy = policy_folder(int(models))
        return policy, reward_folder(policy)
    return Path(models) / "policy", Path(models) / "reward"


def prompts(tokenizer: Any, tokens: int, count: int, seed: int = 0) -> list[str]:
    """User messages that are exactly `tokens` long once the chat template stands around them."""
    vocabulary = sorted(tokenizer.get_vocab())
    # A byte-level vocabulary marks where a word begins; one of whole words does not.
    begins = [w[1:] for w in vocabulary if w.startswith("Ġ")] or vocabulary
    words = [w for w in begins if w.isalpha() and w.islower()]
    rng = random.Random(seed)

    def length(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])

    found: list[str] = []
    empty = length("a") - 1
    while len(found) < count:
        text = " ".join(["Write"] + rng.choices(words, k=tokens - empty - 1))
        if length(text) == tokens:
            found.append(text)
    return found


class Turns:
    """A worker's side: it does one step whenever the driver says so, and answers with the seconds that it took.

    Answers go to a pipe of their own, whose number is in R2M_SPEED_ANSWERS: the tools print what they like. Without one, as
    in a worker that is started by hand, they go to the standard output.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(int(os.environ.get("R2M_SPEED_ANSWERS", "1")), "w")
        self._begun = 0.0

    def wait(self) -> None:
        """Sleep until it is this worker's turn; end the process when there is no more to do."""
        if sys.stdin.readline().strip() != "go":
            raise SystemExit
        self._begun = perf_counter()

    def done(self, *more: float) -> None:
        """The step is over."""
        answer = [perf_counter() - self._begun, *more]
        print(*answer, file=self._answers, flush=True)


def one_thread() -> None:
    """The condition of every figure."""
    torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
