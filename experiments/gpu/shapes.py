"""Random models of named shapes with a tokenizer of made-up words, prompts for them, and the workload of a step.

Weights say nothing about speed, so none have to be copied to the machine. The models lie in r2m's cache (R2M_CACHE).
"""

import itertools
import json
import string
from dataclasses import dataclass
from pathlib import Path

import torch
from models import Workload, prompts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Size:
    """Of a decoder-only model."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int


@dataclass(frozen=True)
class Shapes:
    """What is measured."""

    policy: Size
    reward: Size
    vocabulary: int
    work: Workload  # of an RL step
    batches: tuple[int, ...]  # sequences that are decoded at once
    decoded: tuple[int, int]  # tokens of the prompts and of the responses there
    product: tuple[int, int, int]  # the matrix product whose rate is the yardstick
    bandwidth_bytes: int  # copied to measure the memory's rate
    seconds: float  # for which a rate is measured
    dtype: str
    micro_batch: int  # sequences, TRL's
    keys: tuple[str, ...]  # configuration keys of r2m


SHAPES = {
    # Of Qwen2.5-1.5B and Llama-3.2-3B with the vocabulary of SmolLM2, both as Llamas: 1.4 and 3.0 billion parameters.
    "paper": Shapes(
        policy=Size(1536, 28, 12, 2, 8960), reward=Size(3072, 28, 24, 8, 8192), vocabulary=49152,
        work=Workload(16, 180, 256, 8), batches=(32, 128), decoded=(256, 64), product=(8192, 8192, 8192),
        bandwidth_bytes=2**30, seconds=0.5, dtype="bf16", micro_batch=16,
        keys=("feedback.dim=2048", "rollout.tokens_per_batch=8192", "engine.gradient_checkpointing=true"),
    ),
    "tiny": Shapes(
        policy=Size(64, 2, 4, 2, 128), reward=Size(64, 2, 4, 2, 128), vocabulary=512,
        work=Workload(2, 24, 8, 4), batches=(4, 8), decoded=(16, 8), product=(256, 256, 256),
        bandwidth_bytes=2**22, seconds=0.02, dtype="fp32", micro_batch=8,
        keys=("feedback.dim=16",),
    ),
}  # fmt: skip


def folder(name: str) -> Path:
    """policy/, reward/ and prompts.jsonl of a shape, made on the first call."""
    from r2m_cli.files.cache import build_once

    return build_once(f"gpu-{name}", lambda target: _make(SHAPES[name], target), f"making random models, {name}")


def _make(shapes: Shapes, target: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from r2m_cli.data.words import SPECIALS, word_tokenizer

    every = itertools.product(string.ascii_lowercase, repeat=4)
    tokenizer = word_tokenizer(["".join(w) for w in itertools.islice(every, shapes.vocabulary - len(SPECIALS))])
    texts = prompts(tokenizer, shapes.work.prompt_tokens, 32)
    (target / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    torch.manual_seed(0)
    for name, kind, size in (
        ("policy", LlamaForCausalLM, shapes.policy),
        ("reward", LlamaForSequenceClassification, shapes.reward),
    ):
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=size.width, num_hidden_layers=size.layers, intermediate_size=size.inner,
            num_attention_heads=size.heads, num_key_value_heads=size.key_value_heads, max_position_embeddings=4096,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None, initializer_range=0.1 if shapes.dtype == "fp32" else 0.02,
        )  # fmt: skip
        config.num_labels = 1
        with torch.device(DEVICE):
            model = kind(config).to(dtype(shapes))
        model.save_pretrained(target / name)
        tokenizer.save_pretrained(target / name)


def dtype(shapes: Shapes) -> torch.dtype:
    """Of weights and arithmetic."""
    from r2m_cli.distributed.engine import DTYPES

    return DTYPES[shapes.dtype]


def keys(shapes: Shapes) -> list[str]:
    """Configuration keys of r2m for these shapes on this machine."""
    # One rank of ZeRO keeps fp32 weights beside those in bf16.
    engine = ["engine=zero", "engine.num_processes=1"]
    return [*engine, *shapes.keys, f"engine.dtype={shapes.dtype}", f"engine.device={DEVICE}"]
