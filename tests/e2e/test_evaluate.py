"""`r2m evaluate` through its entry point, every figure computed again from the files that it and the run leave."""

import csv
import functools
import json
import math
import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import QUICK, Run, rows
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from r2m_cli.data.gold_world import GoldWorld

Row = dict[str, Any]
TRAINED = (*QUICK, "train.steps=2", "eval.every=2", "feedback.omega=0.5", "feedback.lr=0.05")


def figures_of(folder: Path) -> Row:
    return json.loads((folder / "evaluation.json").read_text())


def write_pairs(path: Path, count: int) -> list[Row]:
    """Labelled pairs in words of the world and others, replies of many lengths, some prompts twice or with turns."""
    world, rng = GoldWorld(), random.Random(3)
    table: list[Row] = []
    for i, prompt in enumerate(world.prompts(count, seed=8)):
        a, b = world.demonstration(prompt, rng) + " yes" * (i % 4), world.demonstration(prompt, rng)
        asked: Any = prompt
        if i % 5 == 0:
            turns = ("user", prompt), ("assistant", "apple ."), ("user", "more")
            asked = [{"role": role, "content": text} for role, text in turns]
        table.append({"prompt": asked, "chosen": a, "rejected": b if b != a else "frog"})
    path.write_text("\n".join(map(json.dumps, table)))
    return table


@functools.cache
def classifier(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)


@torch.no_grad()
def naive_text_reward(folder: Path, prompt: list[Row], reply: str) -> float:
    """One conversation at a time through plain transformers: no batch, no padding."""
    tokenizer, model = classifier(folder)
    text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": reply}], tokenize=False)
    return float(model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits)


class NaiveFeedback:
    """Eqs. 3 and 4 as the paper writes them, keys and values and all, from the folders that a run leaves."""

    def __init__(self, run: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(run / "policy")
        self.policy = AutoModelForCausalLM.from_pretrained(run / "policy")
        self.backbone = AutoModel.from_pretrained(run / "reward_model")
        self.weights = load_file(run / "reward_model" / "feedback.safetensors")
        self.omega = json.loads((run / "reward_model" / "feedback.json").read_text())["omega"]

    @torch.no_grad()
    def reward(self, prompt: list[Row], reply: str) -> float:
        text = self.tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": reply}], tokenize=False)
        tokens = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]])
        rte = self.backbone(tokens).last_hidden_state[:, -1]  # [1, D_rm]
        h = self.policy.model(tokens[:, :-1]).last_hidden_state[0]  # [S - 1, D_p]
        w = {name.removeprefix("adapter."): value for name, value in self.weights.items()}
        q, k, v = rte @ w["w_q"], h @ w["w_k"], h @ w["w_v"]
        feedback = torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1) @ v @ w["w_o"]
        return float(((1 - self.omega) * feedback + self.omega * rte) @ w["phi.weight"].T)


def check_pairs(run: Path, evaluation: Path, proxy: Path, pairs: list[Row]) -> None:
    """Every margin and both accuracies, from the pairs alone."""
    found, figures = rows(evaluation, "pairs.jsonl"), figures_of(evaluation)
    assert [(r["index"], r["chosen"], r["rejected"]) for r in found] == [
        (i, pair["chosen"], pair["rejected"]) for i, pair in enumerate(pairs)
    ]
    naive = NaiveFeedback(run)
    text, live = [], []
    for row in found:
        prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
        text.append(naive_text_reward(proxy, prompt, chosen) - naive_text_reward(proxy, prompt, rejected))
        live.append(naive.reward(prompt, chosen) - naive.reward(prompt, rejected))
    assert [r["margin_text"] for r in found] == pytest.approx(text, abs=1e-4)
    assert [r["margin_feedback"] for r in found] == pytest.approx(live, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(text, live)) > 1e-3, "the feedback makes a difference"
    for name, margins in (("pairs/accuracy", text), ("pairs/accuracy_feedback", live)):
        assert figures[name] == sum(m > 0 for m in margins) / len(margins), name
        low, high = figures["intervals"][name]
        assert 0 <= low <= figures[name] <= high <= 1
    assert figures["pairs/count"] == len(pairs)
    assert figures["pairs/accuracy_difference"] == pytest.approx(
        figures["pairs/accuracy_feedback"] - figures["pairs/accuracy"]
    )


def check_best_of_n(run: Path, evaluation: Path, proxy: Path) -> None:
    """The scores of complete responses, and the best by the live reward model beside the best by the initial one."""
    table, figures, naive = rows(evaluation, "best_of_n.jsonl"), figures_of(evaluation), NaiveFeedback(run)
    asked = [row["instruction"] for row in json.loads((evaluation / "alpaca_eval.json").read_text())]
    whole = [row for row in table if row["finished"]]
    assert len(whole) > 3
    same = []
    for row in whole:
        prompt = [{"role": "user", "content": asked[row["prompt"]]}]
        assert row["proxy"] == pytest.approx(naive_text_reward(proxy, prompt, row["response"]), abs=1e-4)
        same.append(row["live"] == pytest.approx(naive.reward(prompt, row["response"]), rel=1e-3, abs=1e-3))
    # Where a special token was sampled within a response its text does not tell what the policy has read.
    assert sum(same) > 0.8 * len(whole)
    for n in (1, 2, 4):
        for name, score, by in (
            ("gold", "gold", "proxy"), ("proxy", "proxy", "proxy"), ("gold_live", "gold", "live"), ("live", "live", "live"),
        ):  # fmt: skip
            assert figures[f"best_of/{n}/{name}"] == pytest.approx(naive_best(table, n, score, by), abs=1e-9), name
    assert figures["best_of/1/gold"] == pytest.approx(figures["best_of/1/gold_live"])


@pytest.mark.long
def test_accuracy_with_and_without_feedback_equals_an_independent_script(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *TRAINED, "hydra.run.dir=run")
    proxy = Path(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["reward"]["path"])
    said = r2m("evaluate", "run=run", "eval.best_of=4", "hydra.run.dir=own").stdout
    assert "gold_live" in said
    check_best_of_n(tmp_path / "run", tmp_path / "own", proxy)
    check_pairs(
        tmp_path / "run", tmp_path / "own", proxy, [r for r in rows(proxy, "pairs.jsonl") if r["split"] == "heldout"]
    )
    last = rows(tmp_path / "run")[-1]
    figures = figures_of(tmp_path / "own")
    # The run's own accuracy is of fewer pairs (eval.reward_check_pairs), under names of its own.
    for name in [name for name in last if name.startswith("eval/") and "pair" not in name]:
        assert figures[name] == pytest.approx(last[name], abs=1e-5), name
        low, high = figures["intervals"][name]
        assert low <= figures[name] <= high

    # the same run on a file, all of it; the gold world must not have a say
    pairs = write_pairs(tmp_path / "other.jsonl", 24)
    other = ("data=file", "data.path=other.jsonl", "data.holdout=1.0", "eval.pairs=1000")
    r2m("evaluate", "run=run", *other, "hydra.run.dir=file")
    check_pairs(tmp_path / "run", tmp_path / "file", proxy, pairs)
    assert not any("gold" in name for name in figures_of(tmp_path / "file"))
    assert "gold" in r2m("evaluate", "run=run", *other, "eval.judge=gold", code=2).stderr
    assert "ppo.lr" in r2m("evaluate", "run=run", *other, "ppo.lr=1", code=2).stderr
    few = r2m("evaluate", "run=run", *other[:2], "data.holdout=0.25", "eval.pairs=2", "hydra.run.dir=few")
    assert "eval.pairs=2 of " in few.stdout
    assert figures_of(tmp_path / "few")["pairs/count"] == 2
    train = r2m("train", *QUICK, *other, "policy.path=run/policy", "reward.path=run/reward_model", code=2)
    assert "both need at least one" in train.stderr


def naive_best(table: list[Row], n: int, score: str, by: str = "proxy") -> float:
    """Over all prompts and subsets of n of a prompt's responses: mean score of the best by `by`, equals averaged."""
    means = []
    for prompt in {row["prompt"] for row in table}:
        found = []
        for subset in combinations([row for row in table if row["prompt"] == prompt], n):
            best = max(row[by] for row in subset)
            tied = [row[score] for row in subset if row[by] == best]
            found.append(sum(tied) / len(tied))
        means.append(sum(found) / len(found))
    return sum(means) / len(means)


def test_win_rate_and_best_of_n_in_the_gold_world(r2m: Run, tmp_path: Path) -> None:
    world = GoldWorld()
    said = r2m("evaluate", *QUICK, "eval.judge=gold", "eval.best_of=6", "hydra.run.dir=first").stdout
    first, figures = tmp_path / "first", figures_of(tmp_path / "first")
    for word in ("win_rate/length_controlled", "best of n", "pairs/accuracy ", "95 %"):
        assert word in said
    assert "pairs/accuracy_feedback" not in figures, "nothing has trained an adapter"

    compared = rows(first, "comparisons.jsonl")
    assert len(compared) == 8
    for row in compared:
        asked = row["prompt"][-1]["content"]
        here, there = (world.score(asked, row[side], end) for side, end in zip(("response", "other"), row["finished"]))
        assert row["preference"] == (0.5 if here == there else float(here > there))
        assert row["finished"][1], "a demonstration is complete"
    wins, ties, losses = (sum(r["preference"] == p for r in compared) for p in (1, 0.5, 0))
    assert [figures[f"win_rate/{what}"] for what in ("wins", "ties", "losses")] == [wins, ties, losses]
    assert figures["win_rate"] == (wins + ties / 2) / 8
    assert len(figures["intervals"]["win_rate"]) == len(figures["intervals"]["win_rate/length_controlled"]) == 2

    sampled = rows(first, "best_of_n.jsonl")
    assert len(sampled) == 8 * 6
    prompts = [row["prompt"][-1]["content"] for row in compared]
    for row in sampled:
        assert row["gold"] == pytest.approx(world.score(prompts[row["prompt"]], row["response"], row["finished"]))
    with (first / "best_of_n.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert [int(line["n"]) for line in curve] == [1, 2, 4, 6]
    for line in curve:
        n = int(line["n"])
        assert float(line["kl"]) == pytest.approx(math.log(n) - (n - 1) / n)
        for score in ("proxy", "gold"):
            assert float(line[score]) == pytest.approx(naive_best(sampled, n, score), abs=1e-9)
            assert float(line[f"{score}_low"]) <= float(line[score]) <= float(line[f"{score}_high"])
            assert figures[f"best_of/{n}/{score}"] == float(line[score])

    answers = json.loads((first / "alpaca_eval.json").read_text())
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert [(a["instruction"], a["output"]) for a in answers] == [(p, r["response"]) for p, r in zip(prompts, compared)]
    assert {tuple(a) for a in answers} == {("instruction", "output", "generator", "dataset")}
    assert {a["generator"] for a in answers} == {Path(config["policy"]["path"]).name}

    # Another seed of the reward model's fit is a held-out one; against itself a policy only ties.
    r2m("reward", *QUICK, "reward.fit.seed=1", "output=heldout")
    itself = f"eval.against={config['policy']['path']}"
    r2m(
        "evaluate", *QUICK, "eval.judge=reward", itself, "eval.best_of=2", "eval.reward=heldout", "hydra.run.dir=second"
    )
    second = figures_of(tmp_path / "second")
    assert (second["win_rate"], second["win_rate/length_controlled"], second["win_rate/ties"]) == (0.5, 0.5, 8)
    table = rows(tmp_path / "second", "best_of_n.jsonl")
    assert second["best_of/2/heldout"] == pytest.approx(naive_best(table, 2, "heldout"), abs=1e-9)
    outputs = [(r["prompt"], r["response"]) for r in rows(tmp_path / "second", "comparisons.jsonl")]
    scores = [naive_text_reward(tmp_path / "heldout", *output) for output in outputs]
    assert second["eval/heldout_reward"] == pytest.approx(sum(scores) / 8, abs=1e-4)
    assert second["eval/heldout_reward"] != pytest.approx(second["eval/reward"], abs=1e-3)


@pytest.mark.long
def test_a_file_of_pairs_and_what_is_missing_from_it(r2m: Run, tmp_path: Path) -> None:
    r2m("evaluate", *QUICK, "hydra.run.dir=models")
    config = yaml.safe_load((tmp_path / "models" / "config.yaml").read_text())
    policy, proxy = Path(config["policy"]["path"]), Path(config["reward"]["path"])
    pairs = write_pairs(tmp_path / "pairs.jsonl", 20)
    bare = [json.dumps({"prompt": f"tool : axe {word}"}) for word in ("saw", "drill")]
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("\n" + "\n".join(bare))
    models = (f"policy.path={policy}", f"reward.path={proxy}", "data=file", "data.holdout=1.0", "eval.prompts=100")
    ours = (*QUICK, *models, "data.path=pairs.jsonl")

    said = r2m("evaluate", *ours, "eval.judge=reward", "hydra.run.dir=judged").stdout
    assert "2 of 22 prompts have no chosen reply" in said
    compared = rows(tmp_path / "judged", "comparisons.jsonl")
    assert sorted(row["other"] for row in compared) == sorted(pair["chosen"] for pair in pairs)
    for row in compared:
        here, there = (naive_text_reward(proxy, row["prompt"], row[side]) for side in ("response", "other"))
        assert row["preference"] == (0.5 if row["response"] == row["other"] else float(here > there))
    answers = json.loads((tmp_path / "judged" / "alpaca_eval.json").read_text())
    assert len(answers) == 22
    assert {a["dataset"] for a in answers} == {"pairs.jsonl"}
    turns = [a["instruction"] for a in answers if "\n\nHuman: more" in a["instruction"]]
    assert len(turns) == 4
    assert all(text.startswith("Human: ") for text in turns)

    # Pairs with one and the same prompt are one draw: whatever they say, there is no interval.
    sides = [(pair["chosen"], pair["rejected"]) for pair in pairs[:6]]
    same = [{"prompt": "tool : axe saw", "chosen": a, "rejected": b} for x, y in sides for a, b in ((x, y), (y, x))]
    (tmp_path / "same.jsonl").write_text("\n".join(map(json.dumps, same)))
    said = r2m("evaluate", *QUICK, *models, "data.path=same.jsonl", "hydra.run.dir=same").stdout
    assert re.search(r"pairs/accuracy +0.5 +one prompt: no interval", said)
    figures = figures_of(tmp_path / "same")
    assert figures["pairs/count"] == 12
    assert figures["pairs/accuracy"] == 0.5
    assert figures["intervals"]["pairs/accuracy"] is None

    (tmp_path / "bare.jsonl").write_text("\n".join(bare))
    prompts_alone = (*QUICK, *models, "data.path=bare.jsonl")
    r2m("evaluate", *prompts_alone, "hydra.run.dir=alone")
    assert "pairs/accuracy" not in figures_of(tmp_path / "alone"), "nor the pairs of the world's reward model"
    for arguments, says in (
        ((*prompts_alone, "eval.judge=reward"), "eval.against=chosen: none of the 2"),
        ((*ours, "eval.judge=reward", "eval.against=nowhere"), "eval.against=nowhere: no such folder"),
        ((*ours, f"eval.against={policy}"), "eval.judge=reward|gold|openai"),
        ((*ours, "eval.reward=nowhere"), "eval.reward=nowhere: no such folder"),
        ((*ours, "eval.best_of=4"), "eval.reward=FOLDER"),
        ((*QUICK, "data.path=pairs.jsonl"), "add data=file"),
        ((*ours, f"eval.reward={policy}"), "eval.reward="),
    ):
        refused = r2m("evaluate", *arguments, code=2).stderr
        assert says in refused
        assert "Traceback" not in refused
