"""Milliseconds per decoded token: r2m's sampler, transformers' `generate` with its two caches, and what the memory allows.

    python experiments/gpu/decoding.py paper|tiny

The time of the first token, which is the prompts' and not decoding, is taken off.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from common import seconds
from rows import attempt, row
from shapes import DEVICE, SHAPES, Shapes, dtype, folder
from transformers import AutoModelForCausalLM

from r2m_cli.models.generate import sample
from r2m_cli.models.policy import Policy


def main() -> None:
    """A row for each number of sequences and each way."""
    name = sys.argv[1]
    shapes = SHAPES[name]
    torch.manual_seed(0)
    lm: Any = AutoModelForCausalLM.from_pretrained(folder(name) / "policy", dtype=dtype(shapes)).to(DEVICE).eval()
    policy, rate = Policy(lm), bandwidth(shapes)
    row("memory bandwidth, a copy", rate / 1e12, "TB/s")
    for batch in shapes.batches:
        row(f"{batch} sequences: floor, weights and cache read once", 1e3 * needed(lm, shapes, batch) / rate, "ms")
        for way, decode in ways(policy, lm, shapes, batch).items():
            what = f"{batch} sequences: {way}"
            with attempt(what):
                row(what, per_token(decode, shapes.decoded[1]), "ms")


def bandwidth(shapes: Shapes) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(shapes.bandwidth_bytes, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * 20 * shapes.bandwidth_bytes / seconds(lambda: [target.copy_(source) for _ in range(20)])


def needed(lm: Any, shapes: Shapes, batch: int) -> float:
    """Bytes that a decoded token reads: all weights, and the keys and values so far, at the middle of the responses."""
    (prompt, response), size, width = shapes.decoded, shapes.policy, dtype(shapes).itemsize
    cache = 2 * size.layers * size.key_value_heads * (size.width // size.heads) * (prompt + response / 2)
    return width * (sum(p.numel() for p in lm.parameters()) + batch * cache)


def ways(policy: Policy, lm: Any, shapes: Shapes, batch: int) -> dict[str, Callable[[int], object]]:
    """Each decodes so many tokens of `batch` sequences."""
    group = shapes.work.group_size
    ids = torch.randint(5, shapes.vocabulary, (batch // group, shapes.decoded[0]))
    uniforms = torch.rand(batch, shapes.decoded[1]).clamp_min(1e-6)
    repeated = ids.repeat_interleave(group, 0).to(DEVICE)

    def generate(count: int, **options: Any) -> object:
        return lm.generate(
            repeated, attention_mask=torch.ones_like(repeated), do_sample=True, top_k=0, min_new_tokens=count,
            max_new_tokens=count, pad_token_id=0, **options,
        )  # fmt: skip

    found: dict[str, Callable[[int], object]] = {
        "r2m": lambda count: sample(policy, ids.tolist(), group, uniforms[:, :count], 1.0, set(), 0),
        "generate": generate,
    }
    if batch == shapes.batches[0] and DEVICE == "cuda":  # it is compiled for every size, and on a CPU not at all
        found["generate, static cache"] = lambda count: generate(count, cache_implementation="static")
    return found


def per_token(decode: Callable[[int], object], count: int) -> float:
    """Milliseconds, without the first token's, after a warm-up with the same sizes."""
    for warm_up in (count, 1):
        decode(warm_up)
    return 1e3 * (seconds(lambda: decode(count)) - seconds(lambda: decode(1))) / (count - 1)


if __name__ == "__main__":
    main()
