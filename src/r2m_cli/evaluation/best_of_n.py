"""Best-of-n: how picking by the proxy affects the true reward, a measure of over-optimisation without any training.

As in Gao et al. 2023 (arXiv 2210.10760), gold and proxy of best-of-n are reported against its KL.
"""

import csv

import torch
from torch import Tensor

from r2m_cli.config.schema import Config
from r2m_cli.console import Count
from r2m_cli.conversation import Prompt
from r2m_cli.data.truncation import cut_notes
from r2m_cli.errors import UserError
from r2m_cli.evaluation.measures import Measures
from r2m_cli.evaluation.policy import text_scores
from r2m_cli.files.run_folder import BEST_OF_N, BEST_OF_N_RESPONSES
from r2m_cli.maths.best_of_n import best_of_n, divergence, sizes
from r2m_cli.maths.statistics import Estimate
from r2m_cli.models.actors import Actors
from r2m_cli.models.reward_model import RewardModel
from r2m_cli.seeds import Stream
from r2m_cli.stages.accuracy import units_of
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.packing import pack
from r2m_cli.stages.rollout import rollout
from r2m_cli.text import fixed

STEP = 1  # of the random draws; the fixed responses use step 0
NAMES = ("proxy", "gold", "heldout", "live", "gold_live", "heldout_live")  # columns of the printed curve


def curve(
    actors: Actors,
    prompts: list[Prompt],
    config: Config,
    weight: float,
    heldout: RewardModel | None,
    rows: int,
    measures: Measures,
) -> None:
    """Sample eval.best_of responses per prompt; estimate the best of n = 1, 2, 4, ... of them by the initial reward model and,
    if the run has feedback, by the live one, which reads the policy's states.

    Measures `best_of/N/proxy`, `/gold`, `/heldout` of the best by the initial model, and `/live`, `/gold_live`, `/heldout_live`
    of the best by the live one, with intervals over prompts; and `best_of/N/kl` in nats. Writes the same numbers to
    `best_of_n.csv` and the responses to `best_of_n.jsonl`. A prompt is left out if a score to pick by is not finite.

    Args:
        weight: w(t) of the live reward.

    Raises:
        UserError: no prompt has finite scores.
    """
    scores, table = _samples(actors, prompts, config, weight, heldout, rows)
    texts = [prompts[int(str(row["prompt"]))] for row in table], [str(row["response"]) for row in table]
    for model, whose in ((actors.reward, ""), (heldout, " (eval.reward)")):
        if model is not None:
            measures.notes += cut_notes(
                model.truncations, *texts, f"responses for the best of n, with their prompts,{whose}"
            )
    measures.rows(BEST_OF_N_RESPONSES, table)
    usable = (scores["proxy"] + scores.get("live", 0.0)).isfinite().all(dim=1)
    if not usable.any():
        raise UserError("eval.best_of: the reward model's scores are not finite; try engine.dtype=fp32")
    if not usable.all():
        measures.notes.append(
            f"best of n: {int((~usable).sum())} prompts have scores that are not finite and are left out"
        )
    scores = {name: values[usable] for name, values in scores.items()}
    units = units_of(prompt for prompt, kept in zip(prompts, usable) if kept)
    lines = []
    for n in sizes(config.eval.best_of):
        best = {name: best_of_n(scores["proxy"], values, n) for name, values in scores.items() if name != "live"}
        if "live" in scores:
            best["live"] = best_of_n(scores["live"], scores["live"], n)
            for name in [name for name in ("gold", "heldout") if name in scores]:
                best[f"{name}_live"] = best_of_n(scores["live"], scores[name], n)
        estimates = {name: measures.mean(f"best_of/{n}/{name}", values, units) for name, values in best.items()}
        measures.number(f"best_of/{n}/kl", divergence(n))
        lines.append((n, divergence(n), estimates))
    _write(lines, measures)


def check(config: Config) -> None:
    """Raises UserError for a curve of the proxy alone, which rises regardless of the responses' quality."""
    if config.eval.best_of > 1 and config.data.kind == "file" and config.eval.reward is None:
        raise UserError(
            f"eval.best_of={config.eval.best_of}: picking by the reward model raises its own score regardless of the "
            "responses' quality; name another one to measure them with, eval.reward=FOLDER (or use the gold world, data=gold)"
        )


def _samples(
    actors: Actors, prompts: list[Prompt], config: Config, weight: float, heldout: RewardModel | None, rows: int
) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """Scores [P, N] by name, and one row per response."""
    count = config.eval.best_of
    columns: dict[str, list[Tensor]] = {}
    table: list[dict[str, object]] = []
    at_once = max(
        1, len(prompts) // count
    )  # prompts per batch: about as many responses at a time as the fixed prompts have
    progress = Count(f"sampling {count} responses to each prompt")
    for start in range(0, len(prompts), at_once):
        part = prompts[start : start + at_once]
        batch = rollout(
            actors, part, range(start, start + len(part)), count, config.rollout, config.seed, Stream.EVAL, STEP
        )
        if actors.reward.feedback is None:
            found = {"proxy": text_scores(actors.reward, batch.prompt_of, batch.responses, actors.device, rows)}
        else:
            (packs,) = pack(batch, config.rollout.tokens_per_batch)
            seen = annotate(actors, batch, packs, weight, config.rollout.temperature, rewards_only=True)
            found = {
                name: torch.where(seen.valid, values, torch.nan).flatten()
                for name, values in (("proxy", seen.frozen_rewards), ("live", seen.rewards))
            }
        if actors.gold is not None:
            gold = [actors.gold(*row) for row in zip(batch.prompt_of, batch.responses, batch.finished)]
            found["gold"] = torch.tensor(gold, dtype=torch.float64)
        if heldout is not None:
            found["heldout"] = text_scores(heldout, batch.prompt_of, batch.responses, actors.device, rows)
        for name, values in found.items():
            columns.setdefault(name, []).append(values)
        for i, response in enumerate(batch.responses):
            row = {"prompt": start + i // count, "response": response, "finished": batch.finished[i]}
            table.append(row | {name: values[i].item() for name, values in found.items()})
        progress(start + len(part), len(prompts))
    return {name: torch.cat(parts).view(-1, count) for name, parts in columns.items()}, table


def _write(lines: list[tuple[int, float, dict[str, Estimate]]], measures: Measures) -> None:
    names = list(lines[0][2])
    with (measures.run_dir / BEST_OF_N).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "kl", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])
        for n, kl, estimates in lines:
            cells = [(e.value, *(e.interval or ("", ""))) for e in (estimates[name] for name in names)]
            writer.writerow([n, kl, *(cell for row in cells for cell in row)])


def show(measures: Measures, config: Config) -> None:
    """Print the curve as a table."""
    names = [name for name in NAMES if f"best_of/1/{name}" in measures.values]
    print("  best of n   KL" + "".join(f"      {name:24}" for name in names))
    for n in sizes(config.eval.best_of):
        cells = []
        for name in names:
            interval = measures.intervals[f"best_of/{n}/{name}"]
            around = f"{'no interval':18}"
            if interval is not None:
                around = f"[{fixed(interval[0], 3):>7}, {fixed(interval[1], 3):>7}]"
            cells.append(f"{fixed(measures.values[f'best_of/{n}/{name}'], 3):>8}  {around}")
        print(f"  {n:9}   {divergence(n):4.2f}" + "  ".join(cells))
