"""Real labels in the run: a judge says which response of a group is better, for a few groups a step."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from r2m_cli.batch import Annotated
from r2m_cli.data.preferences import Pair
from r2m_cli.distributed import comm
from r2m_cli.judges.judge import Comparison, Judge

Verdict = tuple[int, Pair]  # the group's number in the step, and its pair, the better response first
JUDGED_FILE = "judged.jsonl"  # in the run folder: every label that the judge gave


def labels_due(step: int, per_step: float) -> int:
    """Labels of the 1-based step, so that all steps up to it have had floor(step x per_step)."""
    return math.floor(step * per_step) - math.floor((step - 1) * per_step)


def choose(annotated: Annotated, select: str, count: int) -> list[int]:
    """This rank's groups among the `count` of all ranks that `feedback.judge_select` names. Collective."""
    rewards, numbers = annotated.rewards, annotated.rollout.numbers
    whole = annotated.valid.all(dim=1).tolist()  # a group with a missing reward learns nothing: no label for it
    margins = (rewards.amax(dim=1) - rewards.amin(dim=1)).tolist()
    order = {"first": 0.0, "wide": -1.0, "close": 1.0}[select]
    mine = [(order * margins[i], numbers[i]) for i in range(len(numbers)) if whole[i]]
    best = {number for _, number in sorted(item for rank in comm.gather(mine) for item in rank)[:count]}
    return [i for i, number in enumerate(numbers) if number in best and whole[i]]


def judged(annotated: Annotated, judge: Judge, asked: list[int]) -> tuple[Tensor, list[Verdict]]:
    """What the judge says of best and worst response, by annotated reward, of the groups `asked`.

    Returns:
        [n] preference for the best one, 0 to 1; NaN where the judge was not asked. And this rank's verdicts, without ties.
    """
    rollout, rewards = annotated.rollout, annotated.rewards
    best, worst = (index.tolist() for index in (rewards.argmax(dim=1), rewards.argmin(dim=1)))
    questions = []
    for group in asked:
        pair = [group * rollout.group_size + index[group] for index in (best, worst)]
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
                found.append((rollout.numbers[group], Pair(q.prompt, better, worse)))
    return said, found


def of_all_ranks(verdicts: list[Verdict]) -> list[Pair]:
    """Every rank's judged pairs, the same on each. Collective."""
    every = (item for rank in comm.gather(verdicts) for item in rank)
    return [pair for _, pair in sorted(every, key=lambda item: item[0])]


def remember(run_dir: Path, step: int, pairs: list[Pair]) -> None:
    """Add a step's judged pairs to the run's file."""
    rows = [{"step": step, "prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    with (run_dir / JUDGED_FILE).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def remembered(run_dir: Path, start: int) -> list[Pair]:
    """The pairs that were judged up to step `start`; later ones, of steps that a resumed run repeats, are forgotten."""
    path = run_dir / JUDGED_FILE
    if not path.is_file():
        return []
    rows = [row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if row["step"] <= start]
    if comm.is_main():
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return [Pair(tuple(row["prompt"]), row["chosen"], row["rejected"]) for row in rows]
