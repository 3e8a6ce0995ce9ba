"""`r2m evaluate` on one rank: a policy on the fixed prompts, a reward model on held-out labelled pairs.

With `run=` they are those of a finished training run, under that run's own configuration. The initial reward model is
measured on the text alone; the one that the run left, with the policy's hidden states and w at t = T, that is Omega (the
paper's section G.6).
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from r2m_cli.build import build_actors
from r2m_cli.checkpoint import load_feedback
from r2m_cli.data.preferences import Pair
from r2m_cli.data.source import load_source
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError
from r2m_cli.loop import evaluate
from r2m_cli.models.actors import Actors, pad
from r2m_cli.schema import Config
from r2m_cli.tasks.reward import saved_pairs
from r2m_cli.tasks.train import usable_prompts


def run(config: Config, run_dir: Path) -> None:
    """Evaluate; prints the figures and writes `evaluation.json` into the run folder.

    Raises:
        UserError: a model, prompt or pair that is missing.
    """
    if comm.world_size() > 1:
        raise UserError("r2m evaluate runs in one process: use engine=single")
    source = load_source(config.data, config.eval.prompts)
    run = Path(config.run).expanduser() if config.run is not None else None
    weight = 1.0
    if run is None:  # an adapter that nothing has trained is not worth measuring
        config = replace(config, feedback=replace(config.feedback, kind="none"))
    elif not (run / "policy" / "config.json").is_file():
        raise UserError(f"run={run}: no policy/ there; the run is not finished, or had checkpoint.export=false")
    # The configured models stay what they were in the run: the reference, and the initial reward model.
    actors = build_actors(config, source, str(run / "policy") if run is not None else None)
    if run is not None and actors.reward.feedback is not None:
        weight = load_feedback(run / "reward_model", actors.reward.feedback.module)
    _, prompts, notes = usable_prompts(source, actors.format, config)
    figures = evaluate(actors, prompts, config, weight)

    assert config.reward.path is not None, "prepare() fills it"
    pairs = source.heldout_pairs or saved_pairs(Path(config.reward.path), "heldout")
    pairs = pairs[: config.eval.pairs]
    if pairs:
        text, live = pair_margins(actors, pairs, weight, config.engine.micro_groups * config.ppo.group_size)
        figures["pairs/accuracy"] = float((text > 0).float().mean())
        if live is not None:
            figures["pairs/accuracy_feedback"] = float((live > 0).float().mean())
        figures["pairs/count"] = float(len(pairs))
    (run_dir / "evaluation.json").write_text(json.dumps(figures, indent=2))
    for note in notes:
        print(f"r2m: {note}")
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"  {name:{width}}  {value:.4g}")


@torch.no_grad()
def pair_margins(actors: Actors, pairs: list[Pair], weight: float, micro_rows: int) -> tuple[Tensor, Tensor | None]:
    """Reward of the chosen minus that of the rejected reply: the initial model on the text, the live one with states. [pairs]."""
    sides: list[list[Tensor]] = [[], []]
    chat = actors.format
    for start in range(0, len(pairs), micro_rows):
        part = pairs[start : start + micro_rows]
        # Winners and losers in one batch: scored apart, anything that depends on the batch could tell them apart.
        prompts = [p.prompt for p in part] * 2
        replies = [p.chosen for p in part] + [p.rejected for p in part]
        rte = actors.reward.embed(prompts, replies, actors.device)
        scores = [actors.reward.frozen_head(rte).squeeze(1)]
        if actors.reward.feedback is not None:
            prompt_ids = [chat.prompt_ids(p) for p in prompts]
            reply_ids = [chat.response_ids(p, r) for p, r in zip(prompts, replies)]
            tokens, lengths = pad([p + r for p, r in zip(prompt_ids, reply_ids)], chat.pad_id)
            prompt_lengths = torch.tensor([len(p) for p in prompt_ids])
            given = (tokens, prompt_lengths, lengths - prompt_lengths)
            states = actors.policy(*(t.to(actors.device) for t in given), 1.0)
            scores.append(actors.reward.feedback(rte, states.hidden, states.hidden_mask, weight).reward)
        for side, score in zip(sides, scores):
            side.append((score[: len(part)] - score[len(part) :]).cpu())
    return torch.cat(sides[0]), torch.cat(sides[1]) if sides[1] else None
