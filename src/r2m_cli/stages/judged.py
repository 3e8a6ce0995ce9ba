"""Real labels during a run: for a few groups per step, a judge decides which of two responses is better."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from r2m_cli.batch import Annotated
from r2m_cli.config.schema import FeedbackConfig
from r2m_cli.console import say
from r2m_cli.conversation import Pair
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError
from r2m_cli.files.jsonl import cut_rows, lines_of, text_of
from r2m_cli.files.run_folder import JUDGED
from r2m_cli.judges.judge import Comparison, Judge
from r2m_cli.stages.pair_learning import Labels

Verdict = tuple[int, Pair]  # the group's number in the step, and its pair, the better response first


def judge_step(labels: Labels, annotated: Annotated, config: FeedbackConfig, run_dir: Path, step: int) -> Tensor:
    """The judge's preferences for the groups of a step, see `judged`. The judged pairs are added to the labels and to the run's
    file. Collective. [n].

    Raises:
        UserError: the judge fails; raised on every rank if it fails on any. Nothing is added then.
    """
    assert labels.judge is not None
    preference, verdicts, failed = torch.empty(0), list[Verdict](), ""
    asked = choose(annotated, labels_due(step, config.judge_pairs))
    try:
        preference, verdicts = judged(annotated, labels.judge, asked)
    except UserError as error:
        failed = str(error)
    if reasons := [reason for reason in comm.gather(failed) if reason]:
        raise UserError(reasons[0])
    pairs = of_all_ranks(verdicts)
    labels.judged.extend(pairs)
    if comm.is_main():
        remember(run_dir, step, pairs)
    return preference


def labels_due(step: int, per_step: float) -> int:
    """Number of labels for the 1-based step, so that the steps up to it have floor(step x per_step) in total."""
    return math.floor(step * per_step) - math.floor((step - 1) * per_step)


def choose(annotated: Annotated, count: int) -> list[int]:
    """This rank's share of the first `count` groups of all ranks. That is a random choice: prompts are shuffled. Collective."""
    rollout, group_ids = annotated.rollout, annotated.rollout.group_ids
    whole = annotated.valid.all(dim=1).tolist()  # a group with a missing reward is not trained on: it needs no label
    for i, (best, worst) in enumerate(zip(*_extremes(annotated))):  # two equal texts need none either
        whole[i] &= rollout.responses[best] != rollout.responses[worst]
    mine = [number for i, number in enumerate(group_ids) if whole[i]]
    asked = set(sorted(number for rank in comm.gather(mine) for number in rank)[:count])
    return [i for i, number in enumerate(group_ids) if number in asked and whole[i]]


def judged(annotated: Annotated, judge: Judge, asked: list[int]) -> tuple[Tensor, list[Verdict]]:
    """Ask the judge about the best and the worst response, by annotated reward, of the groups `asked`.

    Returns:
        [n] preference for the best one, 0 to 1, NaN if the judge was not asked; and this rank's verdicts, without ties.
    """
    rollout, rewards = annotated.rollout, annotated.model_rewards
    best, worst = _extremes(annotated)
    questions = []
    for group in asked:
        pair = [best[group], worst[group]]
        texts, ends = [rollout.responses[i] for i in pair], [rollout.finished[i] for i in pair]
        questions.append(Comparison(rollout.prompts[group], texts[0], texts[1], (ends[0], ends[1])))
    said = rewards.new_full((len(rewards),), torch.nan)
    found: list[Verdict] = []
    if questions:
        verdicts = judge(questions)
        said[asked] = torch.tensor(verdicts, dtype=said.dtype, device=said.device)
        for group, q, verdict in zip(asked, questions, verdicts):
            if verdict != 0.5 and not math.isnan(verdict):
                better, worse = (q.first, q.second) if verdict > 0.5 else (q.second, q.first)
                found.append((rollout.group_ids[group], Pair(q.prompt, better, worse)))
    return said, found


def _extremes(annotated: Annotated) -> tuple[list[int], list[int]]:
    """Indices in the batch of each group's best and worst response by annotated reward."""
    first = torch.arange(len(annotated.rewards)) * annotated.rollout.group_size
    best, worst = (
        index.cpu() for index in (annotated.model_rewards.argmax(dim=1), annotated.model_rewards.argmin(dim=1))
    )
    return (first + best).tolist(), (first + worst).tolist()


def of_all_ranks(verdicts: list[Verdict]) -> list[Pair]:
    """The judged pairs of all ranks, the same list on each. Collective."""
    every = (item for rank in comm.gather(verdicts) for item in rank)
    return [pair for _, pair in sorted(every, key=lambda item: item[0])]


def remember(run_dir: Path, step: int, pairs: list[Pair]) -> None:
    """Add a step's judged pairs to the run's file."""
    rows = [{"step": step, "prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    with (run_dir / JUDGED).open("a", encoding="utf-8") as file:
        file.write(text_of(rows))


def remembered(run_dir: Path, start: int) -> list[Pair]:
    """The pairs that were judged up to step `start`; later ones, of steps that a resumed run repeats, are dropped.

    Raises:
        UserError: a row lacks prompt, chosen or rejected.
    """
    path = run_dir / JUDGED
    if comm.is_main() and (line := cut_rows(path, start + 1)):
        say(line)
    comm.barrier()
    pairs = []
    for number, line in enumerate(lines_of(path) if path.exists() else [], start=1):
        try:
            row = json.loads(line)
            pairs.append(Pair(tuple(row["prompt"]), row["chosen"], row["rejected"]))
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path}:{number}: no prompt with a chosen and a rejected reply; delete the line"
            ) from error
    return pairs
