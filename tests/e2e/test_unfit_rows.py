"""Rows that a model cannot be given: left out and named by every word, and never a traceback."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import QUICK, Run

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
WORDS = ["i", "suggest", "apple", "pear", "mango", "thanks", "kindly", "really", "so", "very"]


@pytest.fixture
def base(r2m: Run, tmp_path: Path) -> Path:
    """A policy whose chat template refuses system messages."""
    r2m("sft", *QUICK, "output=base")
    template = tmp_path / "base" / "chat_template.jinja"
    template.write_text(REFUSES + template.read_text())
    return tmp_path / "base"


def pairs(path: Path) -> Path:
    """Twenty pairs, of which the third and the last have a system message, and one row with half an emoji."""
    rows = [
        {"prompt": f"fruit : {WORDS[i % 10]} {WORDS[i // 10]}", "chosen": "i suggest pear", "rejected": "so"}
        for i in range(20)
    ]
    for i in (2, 19):
        rows[i]["system"] = "kindly"
    rows.insert(7, {"prompt": "fruit", "chosen": "\ud83d", "rejected": "so", "\ud83d": "\ud83d"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.long
def test_what_a_template_refuses_is_left_out_by_every_word(r2m: Run, tmp_path: Path, base: Path) -> None:
    # In the folder is a name that is not UTF-8: a legal one, which must not break what is printed and written either.
    (tmp_path / "folder").mkdir()
    pairs(Path(os.fsdecode(os.fsencode(tmp_path) + b"/folder/caf\xe9.jsonl")))
    data = ("data=file", "data.path=folder", *QUICK, "eval.pairs=4", "eval.prompts=4")
    learning, whole = (*data, "data.holdout=0.4"), (*data, "data.holdout=1")

    def check(said: str) -> None:
        assert "refuses the roles [system, user]: no system role" in said
        assert "(caf\\udce9.jsonl:3, caf\\udce9.jsonl:21)" in said
        assert "half a Unicode character (caf\\udce9.jsonl:8)" in said

    check(r2m("sft", *learning, f"policy.base={base}", "output=sft").stdout)
    assert json.loads((tmp_path / "sft" / "fit.json").read_text())["demonstrations"] <= 12
    check(r2m("reward", *learning, f"reward.base={base}", "output=rm").stdout)
    models = ("policy.path=sft", "reward.path=rm")
    r2m("train", *learning, *models, "hydra.run.dir=run", "train.steps=1")
    check((tmp_path / "run" / "warnings.log").read_text())
    check(r2m("evaluate", *whole, *models, "hydra.run.dir=evaluated").stdout)
    places = [json.loads(line)["where"] for line in (tmp_path / "evaluated" / "pairs.jsonl").open()]
    assert len(places) == 4
    check(r2m("analyze", *whole, *models, "hydra.run.dir=analysed", "analysis.sequences=4", "analysis.pairs=4").stdout)


@pytest.mark.long
def test_what_only_the_other_policys_template_refuses_is_named_with_its_place(
    r2m: Run, tmp_path: Path, base: Path
) -> None:
    shutil.copytree(base, tmp_path / "mild")
    template = tmp_path / "mild" / "chat_template.jinja"
    template.write_text(template.read_text().removeprefix(REFUSES))
    r2m("reward", *QUICK, "output=rm")
    row = {"system": "kindly", "chosen": "i suggest pear", "rejected": "so"}
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row | {"prompt": f"fruit : {word}"}) for word in WORDS[:2]))
    models = ("policy.path=mild", "reward.path=rm", "eval.against=base", "eval.judge=reward")
    data = ("data=file", "data.path=x.jsonl", "data.holdout=1", "eval.prompts=1")
    said = r2m("evaluate", *QUICK, *data, *models, "hydra.run.dir=e", code=2).stderr
    assert re.search(r"x\.jsonl:[12]: the chat template of the policy of eval\.against .* no system role", said)


def test_a_template_that_refuses_every_prompt_is_one_line(r2m: Run, tmp_path: Path, base: Path) -> None:
    row = {"system": "kindly", "prompt": "fruit : apple", "chosen": "i", "rejected": "so"}
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row | {"prompt": f"{word}"}) + "\n" for word in WORDS))
    said = r2m(
        "sft", *QUICK, "data=file", "data.path=x.jsonl", "data.holdout=0.4", f"policy.base={base}", "output=o", code=2
    ).stderr
    assert "x.jsonl:1: the chat template of the policy tokenizer" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.long
def test_rows_in_a_chat_template_are_said_by_every_word(r2m: Run, tmp_path: Path) -> None:
    rows = [{"prompt": f"fruit : {word}", "chosen": "i suggest pear", "rejected": "so"} for word in WORDS]
    for row in rows[8:]:
        row["prompt"] = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("data=file", "data.path=x.jsonl", *QUICK, "eval.prompts=4", "data.holdout=0.4")
    r2m("sft", *QUICK, "output=base")
    r2m("reward", *QUICK, "output=rm")
    models = ("policy.path=base", "reward.path=rm")
    note = r"rows already rendered with a chat template: 2 \(the first: \S*x\.jsonl:9, "
    assert re.search(note, r2m("sft", *data, "policy.base=base", "output=sft").stdout)
    assert re.search(note, r2m("reward", *data, "reward.base=rm", "output=again").stdout)
    r2m("train", *data, *models, "hydra.run.dir=run", "train.steps=1", "ppo.prompts_per_step=1")
    assert len(re.findall(note, (tmp_path / "run" / "warnings.log").read_text())) == 1
    assert re.search(note, r2m("evaluate", *data, *models, "hydra.run.dir=evaluated").stdout)
