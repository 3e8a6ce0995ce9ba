"""Labelled pairs for a reward model: the file's own, or the starting policy's responses as the world labels them."""

import json
import random
from pathlib import Path

import torch

from r2m_cli.config.schema import Config
from r2m_cli.console import Count
from r2m_cli.conversation import Pair
from r2m_cli.data.source import Source, user_prompt
from r2m_cli.data.world import World
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError
from r2m_cli.files.jsonl import lines_of, text_of
from r2m_cli.files.run_folder import PAIRS
from r2m_cli.models.formats import policy_format
from r2m_cli.models.generate import end_ids, sample, uniform_rows
from r2m_cli.models.loading import load_causal_lm
from r2m_cli.models.policy import Policy
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.text import from_home


def labelled_pairs(config: Config, source: Source, device: torch.device) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs: the file's, or pairs of the policy's responses labelled by the world.

    Raises:
        UserError: the file has no labelled pairs.
    """
    if source.world is None:
        if not source.pairs or not source.heldout_pairs:
            raise UserError(
                f"data.path={config.data.path}: a reward model needs labelled pairs (chosen, rejected) in the training and "
                f"the held-out part; there are {len(source.pairs)} and {len(source.heldout_pairs)}"
            )
        return source.pairs, source.heldout_pairs
    assert config.policy.path is not None, "prepare() fills it"
    pairs = _label(config, source.world, device)
    return pairs[: config.data.pairs], pairs[config.data.pairs :]


def _label(config: Config, world: World, device: torch.device) -> list[Pair]:
    """Two responses of the starting policy to each prompt, judged by the world's biased, noisy labellers."""
    assert config.policy.path is not None
    policy = Policy(load_causal_lm(config.policy.path, "policy.path", torch.float32, device))
    chat = policy_format(config.policy, config.policy.path, "policy.path", end_ids(policy.lm))
    rng = random.Random(draw_seed(Stream.SPLIT_OR_LABELS, config.data.seed))
    wanted = config.data.pairs + config.eval.pairs
    asked = world.prompts(wanted, draw_seed(Stream.PAIR_PROMPTS, config.data.seed))
    pairs: list[Pair] = []
    count = Count("sampling and labelling pairs", comm.is_main())
    for start in range(0, wanted, 256):
        count(start, wanted)
        texts = asked[start : start + 256]
        indices = list(range(2 * start, 2 * (start + len(texts))))
        uniforms = uniform_rows(config.data.seed, Stream.PAIR_RESPONSES, 0, indices, config.rollout.max_new_tokens)
        prompt_ids = [chat.prompt_ids(user_prompt(text)) for text in texts]
        drawn = sample(policy, prompt_ids, 2, uniforms, config.rollout.temperature, chat.eos_ids, chat.pad_id)
        ends = [ids[-1] in chat.eos_ids for ids in drawn]
        contents = [ids[:-1] if end else ids for ids, end in zip(drawn, ends)]
        replies = chat.tokenizer.batch_decode(contents, skip_special_tokens=True)
        for i, text in enumerate(texts):
            a, b = replies[2 * i], replies[2 * i + 1]
            first = world.label(text, a, b, ends[2 * i], ends[2 * i + 1], rng)
            pairs.append(Pair(user_prompt(text), *((a, b) if first else (b, a))))
    return pairs


def save_pairs(folder: Path, train: list[Pair], heldout: list[Pair]) -> None:
    """Save a world's labelled pairs in the folder of the reward model that was fitted on them."""
    labelled = [("train", p) for p in train] + [("heldout", p) for p in heldout]
    rows = [{"split": split, "prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for split, p in labelled]
    (folder / PAIRS).write_text(text_of(rows), encoding="utf-8")


def saved_pairs(folder: Path, split: str) -> list[Pair]:
    """The labelled pairs in the folder of a world's fitted reward model; empty if there is no such file.

    Raises UserError for an invalid line.
    """
    file = folder / PAIRS
    pairs = []
    for number, line in enumerate(lines_of(file) if file.exists() else [], start=1):
        try:
            row = json.loads(line)
            pair = Pair(tuple(row["prompt"]), row["chosen"], row["rejected"], f"{file}:{number}")
            pairs += [pair] if row["split"] == split else []
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"{file}:{number}: not a labelled pair with its split; fit the reward model again"
            ) from error
    return pairs


def known_pairs(config: Config, source: Source, split: str) -> list[Pair]:
    """The labelled pairs, "train" or "heldout", that exist without sampling: the file's, or those saved with a world's reward
    model."""
    pairs = source.pairs if split == "train" else source.heldout_pairs
    if source.world is not None and config.reward.path is not None:
        pairs = saved_pairs(from_home(config.reward.path), split)
    return pairs
