"""Figures 1 and 2 of one policy and one reward model on labelled pairs."""

import sys
from pathlib import Path
from typing import Any

import torch

from r2m_cli.analysis.preference import figure1
from r2m_cli.analysis.results import Results
from r2m_cli.analysis.rewards import accuracy, figure2, require_finite
from r2m_cli.analysis.sequences import Selection, select
from r2m_cli.config.schema import Config
from r2m_cli.conversation import Pair
from r2m_cli.data.source import Source
from r2m_cli.data.template import ChatFormat
from r2m_cli.data.truncation import cut_notes, told_apart
from r2m_cli.errors import UserError
from r2m_cli.evaluation.policy import text_scores
from r2m_cli.files.run_folder import POLICY
from r2m_cli.models.context import context_length
from r2m_cli.models.layers import pooled_states
from r2m_cli.models.reward_model import RewardModel
from r2m_cli.stages.label_pairs import known_pairs
from r2m_cli.stages.packing import rows_per_forward


def pair_figures(
    config: Config,
    source: Source,
    lm: Any,
    chat: ChatFormat,
    reward: RewardModel,
    device: torch.device,
    results: Results,
) -> Selection:
    """Figures 1 and 2 of a policy and a reward model on labelled pairs. Raises UserError."""
    pairs = known_pairs(config, source, "heldout")
    if not pairs:
        raise UserError(
            f"no labelled pairs in data.path={config.data.path}: give rows with chosen and rejected"
            if source.world is None
            else f"reward.path={config.reward.path}: no labelled pairs in this folder, as r2m reward writes them in the gold world; "
            "give pairs with data=file data.path=FILE"
        )
    limit = min(reward.max_tokens, context_length(lm.config) or reward.max_tokens)
    selection = select(pairs, chat, limit, config.seed, config.analysis)
    chats = (chat, *(member.format for member in reward.truncations))
    results.notes += dict.fromkeys(note for note in (each.note() for each in chats) if note is not None)
    texts = [s.prompt for s in selection.sequences], [s.response for s in selection.sequences]
    results.notes += cut_notes(reward.truncations, *texts, "sequences")
    _say(config, source, lm, pairs, limit, selection, results)
    sequences, budget = selection.sequences, config.rollout.tokens_per_batch
    print(f"r2m: {len(sequences)} sequences: their rewards, then their hidden states", file=sys.stderr, flush=True)
    starts = [s.prompt_tokens for s in sequences]
    rows = rows_per_forward(budget, [len(s.tokens) for s in sequences])
    rewards = text_scores(reward, *texts, device, rows)
    require_finite(rewards)
    states = pooled_states(lm, [s.tokens for s in sequences], starts, budget, chat.pad_id, "states of labelled pairs")
    results.table("sequences.csv", selection.rows(rewards))
    figure1(states, selection, results)
    figure2(states, rewards, selection, results)
    compared = sequences[: selection.compared]
    figure1_pairs = [Pair(a.prompt, a.response, b.response) for a, b in zip(compared[::2], compared[1::2])]
    apart, notes = told_apart(reward.truncations, figure1_pairs, "pairs of figure 1")
    results.notes += notes[1:]  # the first note counts conversations, which `cut_notes` has already reported
    accuracy(rewards, selection, apart, results)
    return selection


def _say(
    config: Config, source: Source, lm: Any, pairs: list[Any], limit: int, selection: Selection, results: Results
) -> None:
    """The conditions of the numbers, for analysis.json and as notes for the user."""
    results.conditions |= {
        "policy": config.policy.path if config.run is None else str(Path(config.run) / POLICY),
        "reward": config.reward.path, "data": config.data.path or "gold", "labelled_pairs": len(pairs),
        "tokens": "response", "max_tokens": limit, "layers": lm.config.get_text_config().num_hidden_layers,
    }  # fmt: skip
    results.notes += source.notes
    if selection.left_out:
        results.notes.append(
            f"{selection.left_out} of the drawn pairs are longer than {limit} tokens, or have equal replies, and are skipped"
        )
    if selection.compared < 2 * config.analysis.sequences:
        results.notes.append(
            f"analysis.sequences={config.analysis.sequences}: there are {selection.compared // 2} pairs"
        )
    if not selection.disjoint:
        results.notes.append(
            f"fewer than {2 * config.analysis.pairs} different prompts (twice analysis.pairs): the {len(selection.first)} pairs of "
            "figure 2 reuse the sequences of figure 1; their intervals are over prompts"
        )
