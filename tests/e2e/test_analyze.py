"""`r2m analyze` through its entry point, its figures computed again from models and pairs by plain loops."""

import csv
import json
import math
import random
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy
import pytest
import torch
import yaml
from conftest import QUICK, Run, rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from r2m_cli.analysis.results import estimate
from r2m_cli.data.gold_world import GoldWorld

Row = dict[str, Any]
FEW = ("analysis.sequences=8", "analysis.pairs=30")


def analysis_of(folder: Path) -> Row:
    return json.loads((folder / "analysis.json").read_text())


def table_of(folder: Path, name: str) -> list[Row]:
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> set[str]:
    """The pictures there that are not blank."""
    drawn = {path.name: matplotlib.image.imread(path)[..., :3] for path in folder.glob("*.png")}
    return {name for name, image in drawn.items() if (image.max(axis=-1) - image.min(axis=-1) > 0.3).any()}


class Naive:
    """A policy's states, one sequence at a time through plain transformers: no batch, no padding."""

    def __init__(self, folder: Path, weights: Row | None = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        if weights is not None:
            self.model.load_state_dict(weights)

    @torch.no_grad()
    def layers(self, prompt: list[Row], reply: str) -> list[list[float]]:
        """The mean state of the reply's tokens, or of all, by layer."""
        asked = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        said = self.tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": reply}], tokenize=False)
        ids = self.tokenizer(said, add_special_tokens=False)["input_ids"]
        start = len(self.tokenizer(asked, add_special_tokens=False)["input_ids"])
        states = self.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        return [hidden[0, start:].mean(dim=0).tolist() for hidden in states]


def naive_reward(folder: Path) -> Callable[[list[Row], str], float]:
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForSequenceClassification.from_pretrained(folder),
    )

    @torch.no_grad()
    def reward(prompt: list[Row], reply: str) -> float:
        text = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": reply}], tokenize=False)
        return float(model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits)

    return reward


def alike(a: list[float], b: list[float]) -> float:
    dot, lengths = sum(x * y for x, y in zip(a, b)), math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return (1 + dot / lengths) / 2


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def naive_coefficients(x: list[float], y: list[float]) -> Row:
    """Pearson; Spearman as Pearson of mean ranks; Kendall's tau-b by counting."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < u for v in values) + (1 + sum(v == u for v in values)) / 2 for u in values]

    def sign(a: float, b: float) -> int:
        return (a > b) - (a < b)

    pairs = [(sign(x[i], x[j]), sign(y[i], y[j])) for i, j in combinations(range(len(x)), 2)]
    untied = math.sqrt(sum(a != 0 for a, _ in pairs) * sum(b != 0 for _, b in pairs))
    return {
        "pearson": numpy.corrcoef(x, y)[0, 1],
        "spearman": numpy.corrcoef(ranks(x), ranks(y))[0, 1],
        "kendall": sum(a * b for a, b in pairs) / untied,
    }


def check_labelled(folder: Path, policy: Path, proxy: Path, lines: list[Row]) -> None:
    """Figures 1 and 2 and the accuracy, from `sequences.csv` (which rows), the pairs' file and the two models alone."""
    table, found = table_of(folder, "sequences.csv"), analysis_of(folder)
    naive, reward = Naive(policy), naive_reward(proxy)
    texts = [(lines[int(row["where"].rpartition(":")[2]) - 1], row["label"]) for row in table]
    asked = [p if isinstance(p := line["prompt"], list) else [{"role": "user", "content": p}] for line, _ in texts]
    states = [naive.layers(prompt, line[label]) for prompt, (line, label) in zip(asked, texts)]
    rewards = [reward(prompt, line[label]) for prompt, (line, label) in zip(asked, texts)]
    assert [float(row["reward"]) for row in table] == pytest.approx(rewards, abs=1e-4)

    first = [i for i, row in enumerate(table) if row["figure1"] == "True"]
    assert [table[i]["label"] for i in first] == ["chosen", "rejected"] * (len(first) // 2)
    for layer, line in enumerate(table_of(folder, "layers.csv")):
        same, different, own, chosen = [], [], [], []
        for i, j in combinations(first, 2):
            value = alike(states[i][layer], states[j][layer])
            if table[i]["label"] != table[j]["label"]:
                (own if asked[i] == asked[j] else different).append(value)
            elif asked[i] != asked[j]:
                same.append(value)
                chosen += [value] if table[i]["label"] == "chosen" else []
        assert float(line["same"]) == pytest.approx(mean(same), abs=1e-5)
        assert float(line["different"]) == pytest.approx(mean(different), abs=1e-5)
        assert float(line["gap"]) == pytest.approx(mean(same) - mean(different), abs=1e-5)
        assert float(line["chosen"]) == pytest.approx(mean(chosen), abs=1e-5)
        assert float(line["different_with_own_prompt"]) == pytest.approx(mean(different + own), abs=1e-5)
        assert float(line["gap_low"]) < float(line["gap_high"])
        assert 0 < float(line["swap_p"]) <= 1
        assert found["figure1"]["layers"][layer]["gap"]["value"] == float(line["gap"])
    assert len(found["figure1"]["layers"]) == len(states[0]), "the embeddings and every block"

    x, y = [], []
    for row in table_of(folder, "pairs.csv"):
        i, j = int(row["first"]), int(row["second"])
        assert asked[i] != asked[j]
        x.append(alike(states[i][-1], states[j][-1]))
        y.append(abs(rewards[i] - rewards[j]))
        assert float(row["similarity"]) == pytest.approx(x[-1], abs=1e-5)
        assert float(row["reward_difference"]) == pytest.approx(y[-1], abs=1e-4)
    for name, value in naive_coefficients(x, y).items():
        assert found["figure2"][name]["value"] == pytest.approx(value, abs=2e-3), name
        assert -1 <= found["figure2"][name]["low"] < found["figure2"][name]["high"] <= 1
    right = [float(rewards[i] > rewards[i + 1]) for i in first[::2]]
    assert found["reward_model"]["accuracy"]["value"] == pytest.approx(mean(right))


@pytest.mark.long
def test_a_run_against_plain_loops(r2m: Run, tmp_path: Path) -> None:
    r2m(
        "train", *QUICK, "train.steps=3", "ppo.lr=0.001", "checkpoint.every=1", "checkpoint.keep=9", "hydra.run.dir=run"
    )
    said = r2m("analyze", "run=run", *FEW, "hydra.run.dir=own").stdout
    run, own = tmp_path / "run", tmp_path / "own"
    config = yaml.safe_load((run / "config.yaml").read_text())
    start, proxy = Path(config["policy"]["path"]), Path(config["reward"]["path"])
    check_labelled(own, run / "policy", proxy, rows(proxy, "pairs.jsonl"))
    assert pictures(own) == {"figure1.png", "figure2.png", "figure9.png"}
    for word in ("0.081 (layer 6)", "-0.683", "within hacking", "0.45", "step 3 to 0, ", "reuse the sequences"):
        assert word in said, word
    found = analysis_of(own)
    assert found["figure2"]["disjoint"] is False
    assert found["conditions"] == {
        "policy": "run/policy", "reward": str(proxy), "data": "gold", "labelled_pairs": 32, "tokens": "response",
        "max_tokens": found["conditions"]["max_tokens"], "layers": 2, "truth": "gold", "seed": 0, "bootstrap": 1000, "level": 0.95,
    }  # fmt: skip

    # Table 5: who hacks, from the scores; the scores from models and world
    world, reward, table = GoldWorld(), naive_reward(proxy), rows(own, "responses.jsonl")
    for row in table:
        assert row["truth"] == pytest.approx(world.score(row["prompt"][0]["content"], row["response"], row["finished"]))
        assert row["proxy"] == pytest.approx(reward(row["prompt"], row["response"]), abs=1e-4)
    rank = {
        name: [sum(b[name] < a[name] for b in table) + sum(b[name] == a[name] for b in table) / 2 for a in table]
        for name in ("proxy", "truth")
    }
    overrated = [(p - t) / len(table) for p, t in zip(rank["proxy"], rank["truth"])]
    assert [row["overrated"] for row in table] == pytest.approx(overrated)
    assert sum(row["hacking"] for row in table) == found["table5"]["hacking_responses"] == 2
    least = min(row["overrated"] for row in table if row["hacking"])
    assert least >= max(row["overrated"] for row in table if not row["hacking"])
    for kind in ("hacking", "normal", "across"):
        assert 0 <= found["table5"][kind]["value"] <= 1

    # drift: the policies of all steps, from the checkpoints' own files
    texts = {row["prompt"]: row for row in reversed(table_of(own, "sequences.csv")) if row["label"] == "chosen"}
    lines = [rows(proxy, "pairs.jsonl")[int(row["where"].rpartition(":")[2]) - 1] for row in texts.values()]
    saved = {
        step: torch.load(run / "checkpoints" / f"step_{step}" / "policy" / "state.pt", weights_only=True)["module"]
        for step in (1, 2, 3)
    }
    weights = {step: {k.removeprefix("lm."): v for k, v in state.items()} for step, state in saved.items()}
    policies = {0: Naive(start)} | {step: Naive(start, weights[step]) for step in weights}
    deep = {step: [p.layers(line["prompt"], line["chosen"])[-1] for line in lines] for step, p in policies.items()}
    drift = {(int(r["step_a"]), int(r["step_b"])): float(r["value"]) for r in table_of(own, "drift.csv")}
    assert set(drift) == {(a, b) for a in range(4) for b in range(a, 4)}
    for (a, b), value in drift.items():
        assert value == pytest.approx(mean([alike(x, y) for x, y in zip(deep[a], deep[b])]), abs=1e-5)
    assert drift[0, 3] < drift[0, 1] < 1

    again = r2m("analyze", "run=run", "hydra.run.dir=own", code=2).stderr
    assert "already holds another result (analysis.json)" in again


@pytest.mark.long
def test_two_models_and_a_file_of_pairs(r2m: Run, tmp_path: Path) -> None:
    r2m("evaluate", *QUICK, "hydra.run.dir=models")
    config = yaml.safe_load((tmp_path / "models" / "config.yaml").read_text())
    policy, proxy = Path(config["policy"]["path"]), Path(config["reward"]["path"])
    world, rng, lines = GoldWorld(), random.Random(3), []
    for i, text in enumerate(world.prompts(30, seed=8)):
        turns = [("user", text), ("assistant", "apple ."), ("user", "more")]
        asked: Any = text if i % 5 else [{"role": role, "content": content} for role, content in turns]
        replies = world.demonstration(text, rng) + " yes" * (i % 4), world.demonstration(text, rng)
        lines.append({"prompt": asked, "chosen": replies[0], "rejected": replies[1]})
    lines[3] |= {"prompt": lines[2]["prompt"]}  # a prompt twice
    lines[4]["chosen"] += " so" * 60  # too long
    lines[7] = {"prompt": "a row without labels"}
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    models = (f"policy.path={policy}", f"reward.path={proxy}", "reward.max_tokens=60")
    given = (*models, "data=file", "data.path=pairs.jsonl")

    said = r2m("analyze", *given, "analysis.pairs=8", "rollout.tokens_per_batch=100", "hydra.run.dir=a").stdout
    check_labelled(tmp_path / "a", policy, proxy, lines)
    assert "1 of the drawn pairs are longer than 60 tokens" in said
    assert "analysis.sequences=100: there are 28 pairs" in said
    table, pairs = table_of(tmp_path / "a", "sequences.csv"), table_of(tmp_path / "a", "pairs.csv")
    assert {row["where"] for row in table} == {f"pairs.jsonl:{i + 1}" for i in range(30) if i not in (4, 7)}
    used = [int(row[side]) for row in pairs for side in ("first", "second")]
    assert len({table[i]["prompt"] for i in used}) == 2 * len(pairs) == 16, "no prompt in two pairs"
    assert {table[i]["label"] for i in used} == {"chosen", "rejected"}
    assert analysis_of(tmp_path / "a")["figure2"]["disjoint"] is True
    assert pictures(tmp_path / "a") == {"figure1.png", "figure2.png"}

    r2m("analyze", *given, *FEW, "seed=1", "hydra.run.dir=b")
    check_labelled(tmp_path / "b", policy, proxy, lines)
    other = [row["where"] for row in table_of(tmp_path / "b", "sequences.csv")]
    assert other != [row["where"] for row in table[: len(other)]], "another seed draws others"

    (tmp_path / "bare.jsonl").write_text('{"prompt": "tool : axe saw"}\n{"prompt": "tool : axe drill"}')
    for arguments, says in (
        ((*models, "data=file", "data.path=bare.jsonl"), "bare.jsonl: give rows with chosen and rejected"),
        ((*given, "reward.max_tokens=8"), "pairs of two different prompts are needed"),
        ((models[0], f"reward.path={policy}"), "no trained scoring head"),
    ):
        refused = r2m("analyze", *arguments, "hydra.run.dir=bad", code=2).stderr
        assert says in refused
        assert refused.count("r2m: error: ") == 1
        assert "Traceback" not in refused
        assert not (tmp_path / "bad").exists(), "nothing half-written"


@pytest.mark.slow
def test_a_run_on_a_file_needs_another_reward_model_to_tell_who_hacks(r2m: Run, tmp_path: Path) -> None:
    r2m("sft", *QUICK, "output=base")
    r2m("reward", *QUICK, "reward.fit.seed=1", "output=other")
    r2m("reward", *QUICK, "output=proxy")
    world, rng = GoldWorld(), random.Random(1)
    lines = [
        {"prompt": p, "chosen": world.demonstration(p, rng), "rejected": world.demonstration(p, rng) + " so"}
        for p in world.prompts(40, seed=2)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = ("data=file", "data.path=pairs.jsonl", "data.holdout=0.5", "policy.path=base", "reward.path=proxy")
    r2m("train", *QUICK, *data, "policy.lora_rank=2", "ppo.lr=0.05", "checkpoint.every=1", "checkpoint.keep=3",
        "hydra.run.dir=run")  # fmt: skip
    without = r2m("analyze", "run=run", *FEW, "hydra.run.dir=a").stdout
    assert "table 5 is left out: there is no true reward to tell which responses are hacking" in without
    assert "table5" not in analysis_of(tmp_path / "a")
    drift = {(r["step_a"], r["step_b"]): float(r["value"]) for r in table_of(tmp_path / "a", "drift.csv")}
    assert drift["0", "2"] < drift["0", "1"] < 1, "adapters of a checkpoint are read"

    r2m("analyze", "run=run", *FEW, "eval.reward=other", "hydra.run.dir=b")
    reward = naive_reward(tmp_path / "other")
    for row in rows(tmp_path / "b", "responses.jsonl"):
        assert row["truth"] == pytest.approx(reward(row["prompt"], row["response"]), abs=1e-4)
    same = r2m("analyze", "run=run", "eval.reward=proxy", code=2).stderr
    assert "is the run's own reward model" in same
    shutil.copytree(tmp_path / "proxy", tmp_path / "copy")
    same = r2m("analyze", "run=run", *FEW, "eval.reward=copy", code=2).stderr
    assert "eval.reward: orders all responses as the run's own reward model does" in same
    (tmp_path / "run" / "checkpoints" / "step_1" / "policy" / "state.pt").write_bytes(b"no zip")
    damaged = r2m("analyze", "run=run", *FEW, "hydra.run.dir=c", code=2).stderr
    assert "step_1/policy/state.pt: damaged" in damaged
    assert not (tmp_path / "c").exists(), "nothing half-written"


def write_run(folder: Path, kind: str, seed: int, seconds: float) -> None:
    """A run of ten steps whose reward is its KL, and whose light update takes a tenth of a second."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "feedback": {"kind": kind}}))
    lines = [{"step": 0, "eval/reward_frozen": 0.5}]
    for step in range(1, 11):
        light = {"time/reward_step": 0.1} if kind == "r2m" else {}
        lines.append(
            {"step": step, "loss": -step, "reward": step + seed, "reward_frozen": step / 2, "kl": step, "time/rollout": 0.4,
             "time/eval": 0.5, "step_time": 100.0 if step == 1 else seconds + 0.5, "perf/peak_memory_bytes": 2.0**20 * step,
             "eval/reward_frozen": 0.5 + step * (11 - step)}
            | light
        )  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.long
def test_curves_of_several_runs(r2m: Run, tmp_path: Path) -> None:
    for seed in (0, 2):
        write_run(tmp_path / "outputs" / "vanilla" / f"seed={seed}", "none", seed, seconds=1.0)
        write_run(tmp_path / "outputs" / "r2m" / f"seed={seed}", "r2m", seed, seconds=1.2)
    said = r2m("analyze", "runs=[outputs/r2m,outputs/vanilla]", "hydra.run.dir=curves").stdout
    found = analysis_of(tmp_path / "curves")
    assert pictures(tmp_path / "curves") == {"figure5.png", "figure6.png", "figure7.png"}
    assert found["figure5"]["r2m"]["reward"] == {"mean": 11.0, "std": pytest.approx(math.sqrt(2)), "runs": 2}
    assert found["figure5"]["r2m"]["gold"] is None
    course = found["figure6"]["vanilla"]["eval/reward_frozen"]
    assert [course[at]["mean"] for at in ("start", "peak", "end")] == [0.5, 30.5, 10.5]
    costs = found["figure7"]
    assert costs["baseline"] == "vanilla", "the one without feedback"
    assert costs["labels"]["vanilla"]["step_seconds"] == {"value": 1.0, "low": 1.0, "high": 1.0}, (
        "first step, eval: not"
    )
    assert costs["labels"]["r2m"]["step_against_baseline"] == pytest.approx(1.2)
    assert costs["labels"]["r2m"]["light_update_share"] == pytest.approx(0.1 / 1.2)
    assert costs["labels"]["r2m"]["peak_memory_bytes"] == 10 * 2**20
    points = table_of(tmp_path / "curves", "figure5.csv")
    assert len(points) == 40
    assert points[1]["label"] == "r2m"
    assert (points[1]["seed"], float(points[1]["loss"]), float(points[1]["kl"])) == ("0", -2.0, 2.0)
    assert len(table_of(tmp_path / "curves", "figure6.csv")) == 44
    assert [line["label"] for line in table_of(tmp_path / "curves", "figure7.csv")] == ["r2m", "vanilla"]
    assert f"{0.1 / 1.2:.3f}" in said

    r2m("analyze", "hydra.run.dir=bare")  # whatever is below outputs/
    assert analysis_of(tmp_path / "bare")["figure5"] == found["figure5"]
    for arguments, says in (
        ("runs=[nowhere]", "nowhere is not a folder"),
        ("run=outputs/r2m", "it has no config.yaml"),
    ):
        refused = r2m("analyze", arguments, "hydra.run.dir=bad", code=2).stderr
        assert says in refused
        assert not (tmp_path / "bad").exists()


def test_a_figure_of_which_no_two_resamples_differ_has_no_interval() -> None:
    alike = torch.tensor([math.nan, 0.764, 0.764], dtype=torch.float64)  # a single pair, or not even that
    assert estimate(torch.tensor(0.764), alike).interval is None
    assert estimate(torch.tensor(0.5), torch.tensor([0.4, 0.6], dtype=torch.float64)).interval is not None
