"""The share of this machine's matrix-multiply rate that each stage reaches.

    python experiments/speed/flops.py [--quick]

Counted is the arithmetic that the stage cannot do without: linear layers on every distinct token, attention on the
pairs of tokens that see each other, the LM head on response tokens; a backward pass counts twice its forward. The
yardstick is the fastest of three fp32 products, repeated for a second before and a second after every stage: a stage takes
seconds, and its rate is to be compared with one that the machine keeps up for as long. experiments/gpu does the same on a
GPU, in bf16.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import Results, seconds, spread
from models import LAYERS, WORKLOADS, Workload, one_thread
from r2m_worker import actors_of

from r2m_cli.seeds import Stream
from r2m_cli.stages.packing import pack
from r2m_cli.stages.rollout import rollout

QUICK_LAYERS = 6
SHAPES = [(1024, 1024, 1024), (768, 576, 1536), (768, 1536, 576)]


def matmul_rate(shape: tuple[int, int, int], duration: float, **kind: Any) -> float:
    """Floating-point operations a second that products of this shape reach, kept up for so many seconds.

    Args:
        kind: `device` and `dtype` of the matrices.
    """
    m, k, n = shape
    a, b = torch.randn(m, k, **kind), torch.randn(k, n, **kind)
    a @ b
    count = max(8, round(duration / seconds(lambda: a @ b)))
    return 2 * m * k * n * count / seconds(lambda: [a @ b for _ in range(count)])


def forward_work(lm: torch.nn.Module, work: Workload, last_tokens: bool, head: bool) -> float:
    """Operations of one teacher-forced forward with one copy of each prompt."""
    config = lm.config  # type: ignore[attr-defined]
    p, k = work.prompt_tokens, work.group_size
    own = work.response_tokens - (not last_tokens)
    linear = sum(m.weight.numel() for m in lm.modules() if isinstance(m, torch.nn.Linear) and m.out_features > 1)
    if head:
        linear -= lm.get_output_embeddings().weight.numel()  # type: ignore[operator]
    tokens = p + k * own
    seen = p * (p + 1) / 2 + k * (own * p + own * (own + 1) / 2)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    total = 2 * linear * tokens + 4 * config.num_hidden_layers * config.num_attention_heads * head_dim * seen
    if head:
        total += 2 * config.hidden_size * config.vocab_size * k * work.response_tokens
    return float(work.prompts * total)


def share(function: Callable[[], object], operations: float, rate: Callable[[], float]) -> float:
    """What a call of so many operations reaches of the rate, measured before and after it."""
    before, taken, after = rate(), seconds(function), rate()
    return operations / taken / ((before + after) / 2)


def stages(work: Workload, models: int | str, overrides: list[str]) -> dict[str, tuple[Callable[[], object], float]]:
    """The teacher-forced stages of a step: what makes each anew, and the operations that it takes."""
    actors, source, config = actors_of(work, models, overrides)
    temperature = config.rollout.temperature
    prompts = source.prompts[: work.prompts]
    batch = rollout(actors, prompts, range(work.prompts), work.group_size, config.rollout, 0, Stream.ROLLOUT, 1)
    (packs,) = pack(batch, config.rollout.tokens_per_batch)
    policy, reward = actors.policy, actors.reward

    @torch.no_grad()
    def forward() -> None:
        for p in packs:
            policy(p.sequences, temperature)

    def both() -> None:
        policy.module.zero_grad(set_to_none=True)
        for p in packs:
            policy.backward(policy(p.sequences, temperature).logp.sum())

    def embed() -> None:
        reward.embed(batch.prompt_of, batch.responses, actors.device)

    once = forward_work(policy.module.lm, work, last_tokens=False, head=True)
    return {
        "policy_forward": (forward, once),
        "reward_forward": (embed, forward_work(reward.backbone.classifier, work, last_tokens=True, head=False)),
        "policy_forward_backward": (both, 3 * once),
    }


def run(quick: bool) -> Results:
    """`matmul_fraction.<workload>.<stage>`, and `matmul_fraction.<stage>`, the lower of the two."""
    one_thread()
    results: Results = {}
    shape = max(SHAPES, key=lambda shape: matmul_rate(shape, 0.5))

    def rate() -> float:
        return matmul_rate(shape, 1.0)

    for name, work in WORKLOADS.items():
        work = replace(work, prompts=max(work.prompts, 4 if name == "chat" else 1))
        for stage, (function, operations) in stages(work, QUICK_LAYERS if quick else LAYERS, []).items():
            function()
            shares = [share(function, operations, rate) for _ in range(2 if quick else 9)]
            entry = spread(shares)
            print(f"  {name} {stage}: {entry['median']} of the matrix-multiply rate", flush=True)
            results[f"matmul_fraction.{name}.{stage}"] = entry
            key = f"matmul_fraction.{stage}"
            if key not in results or entry["median"] < results[key]["median"]:
                results[key] = entry
    return results


if __name__ == "__main__":
    run("--quick" in sys.argv)
