"""Forms of conversations and limits on tokens through the command: every margin again by plain transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import QUICK, Run, rows
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from r2m_cli.config.schema import Config, RewardConfig
from r2m_cli.data.gold_world import GoldWorld
from r2m_cli.fitting.cached import reward_cache

TAIL = " ".join(["axe", "saw", "drill", "hammer"] * 4)
QUESTIONS = [
    "tool : axe saw",
    "tool : drill saw",
    "tool : axe hammer",
    "tool : saw axe",
    "tool : hammer saw",
    "tool : saw drill",
]
MINE = "{% for m in messages %}{{ m.content }} . {% endfor %}yes"  # another template than the tokenizer's


@pytest.fixture
def models(r2m: Run, tmp_path: Path) -> tuple[str, str, Path]:
    """policy.path=, reward.path= of the small world's models, and the reward model's folder."""
    r2m("evaluate", *QUICK, "hydra.run.dir=models")
    config = yaml.safe_load((tmp_path / "models" / "config.yaml").read_text())
    proxy = Path(config["reward"]["path"])
    return f"policy.path={config['policy']['path']}", f"reward.path={proxy}", proxy


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[str, ...]:
    """A file of six pairs whose replies differ in their first word only, far before their end, and six short ones."""
    long = [{"prompt": q, "chosen": f"yes {TAIL}", "rejected": f"frog {TAIL}"} for q in QUESTIONS]
    short = [{"prompt": q + " apple", "chosen": "yes", "rejected": "frog pear"} for q in QUESTIONS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, [p for both in zip(long, short) for p in both])))
    return "data=file", "data.path=pairs.jsonl"


@torch.no_grad()
def scores(
    folder: Path, prompt: list[dict[str, str]], replies: tuple[str, str], limit: int, template: str | None
) -> Any:
    """Two replies through transformers alone, no batch; BERT's with the numbers of the texts."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    found = []
    for reply in replies:
        if template == "pair":
            given = tokenizer(prompt[0]["content"], reply, return_tensors="pt")
        else:
            messages = [*prompt, {"role": "assistant", "content": reply}]
            text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
            given = {
                "input_ids": tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][:, -limit:]
            }
        found.append(model(**given).logits.item())
    return found[0] - found[1]


def check_margins(evaluation: Path, folder: Path, limit: int = 1000, template: str | None = None) -> None:
    found = rows(evaluation, "pairs.jsonl")
    assert found
    for row in found:
        expected = scores(folder, row["prompt"], (row["chosen"], row["rejected"]), limit, template)
        assert row["margin_text"] == pytest.approx(expected, abs=1e-4)


def test_what_a_limit_cuts_is_said_by_every_command(r2m: Run, tmp_path: Path, models: Any, pairs: Any) -> None:
    policy, reward, proxy = models
    given = (*QUICK, policy, *pairs, "reward.max_tokens=14")
    said = r2m("evaluate", *given, reward, "data.holdout=1", "hydra.run.dir=cut").stdout
    assert "12 of 24 conversations of the labelled pairs are longer than reward.max_tokens=14 and lose their" in said
    assert "6 of the 12 labelled pairs are equal after that cut, and are left out" in said
    figures = json.loads((tmp_path / "cut" / "evaluation.json").read_text())
    kept = rows(tmp_path / "cut", "pairs.jsonl")
    assert [row["rejected"] for row in kept] == ["frog pear"] * 6
    assert figures["pairs/count"] == figures["pairs/equal_after_cut"] == 6
    assert figures["pairs/accuracy"] == sum(row["margin_text"] > 0 for row in kept) / 6
    low, high = figures["intervals"]["pairs/accuracy"]
    assert low < high
    check_margins(tmp_path / "cut", proxy, limit=14)

    none = r2m("evaluate", *given, reward, "data.holdout=1", "reward.max_tokens=2", "hydra.run.dir=none")
    assert "are equal after that cut, and are left out" in none.stdout
    assert "24 of 24 conversations" in none.stdout

    fit = ("reward.base=" + str(proxy), "reward.fit.parameters=head", "data.holdout=0.4", "output=fit")
    said = r2m("reward", *given, *fit).stdout
    assert "of the training pairs are longer than reward.max_tokens=14" in said
    assert "held-out pairs are equal after that cut" in said
    found = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert found["pairs"] + found["heldout"] == 6
    assert found["accuracy_low"] < found["accuracy_high"]
    assert f"{found['accuracy']:.1%} [{100 * found['accuracy_low']:.1f}, {100 * found['accuracy_high']:.1f}]" in said
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "long.jsonl").write_text("\n".join(lines[::2]))
    too_short = r2m("reward", *given, *fit[:-1], "data.path=long.jsonl", "output=never", code=2).stderr
    assert "are equal after truncation" in too_short

    said = r2m("sft", *given, "policy.base=" + policy.removeprefix("policy.path="), "policy.path=null",
               "rollout.max_new_tokens=5", "output=sft").stdout  # fmt: skip
    assert "have a reply longer than rollout.max_new_tokens=5 and are truncated" in said

    warm = ("feedback=r2m_safe", "feedback.warmup_pairs=4", "feedback.replay_pairs=2", "feedback.warmup_epochs=1")
    said = r2m("train", *given, reward, *warm, "reward.max_tokens=8", "train.steps=1", "hydra.run.dir=run").stdout
    assert "conversations of the labelled pairs are longer than reward.max_tokens=8" in said
    assert "conversations of the held-out pairs are longer than reward.max_tokens=8" in said
    step = next(row for row in rows(tmp_path / "run") if "reward_model/cut_ratio" in row)
    assert 0 < step["reward_model/cut_ratio"] <= 1
    assert "of the conversations are longer than the reward model's limit" in said


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """An encoder that numbers question and answer, and has no chat template."""
    words = GoldWorld().tokenizer()
    core = words.backend_tokenizer
    core.add_special_tokens(["[CLS]", "[SEP]"])
    ids = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=words.pad_token, unk_token=words.unk_token, cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=32, num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5)
    )  # fmt: skip
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.long
def test_a_form_follows_its_model_wherever_that_goes(
    r2m: Run, tmp_path: Path, models: Any, pairs: Any, bert: Path
) -> None:
    policy, reward, proxy = models
    given = (*QUICK, policy, *pairs, "data.holdout=0.5", "eval.prompts=2")
    fit = ("reward.base=bert", "reward.fit.parameters=full", "reward.fit.epochs=1", "output=fitted")
    said = r2m("reward", *given, *fit, "reward.template=pair").stdout
    assert "form pair; reward.template changes it" in said
    for name in ("bert", "fitted"):  # the base needs the key, what was fitted from it knows
        key = ("reward.template=pair",) if name == "bert" else ()
        r2m("evaluate", *given, f"reward.path={name}", *key, f"hydra.run.dir=of_{name}")
        check_margins(tmp_path / f"of_{name}", tmp_path / name, template="pair")

    (tmp_path / "mine.jinja").write_text(MINE)
    mine = ("reward.template=mine.jinja", "reward.end_token=false")  # the template closes no turn
    said = r2m("evaluate", *given, reward, *mine, "eval.reward=fitted", "hydra.run.dir=both").stdout
    assert "the reward model of eval.reward reads" in said, "its own record counts, not the key of another model"
    check_margins(tmp_path / "both", proxy, template=MINE)

    r2m("train", *given, reward, *mine, "train.steps=1", "eval.every=0", "hydra.run.dir=run")
    exported = tmp_path / "run" / "reward_model"
    r2m("evaluate", *given, "reward.path=run/reward_model", "hydra.run.dir=again")
    check_margins(tmp_path / "again", exported, template=MINE)
    r2m("evaluate", "run=run", "hydra.run.dir=of_run")
    check_margins(tmp_path / "of_run", proxy, template=MINE)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["reward"]["template"] == str(
        tmp_path / "mine.jinja"
    )

    for arguments, says in (
        (
            (reward, "reward.template=nowhere.jinja"),
            "reward.template=nowhere.jinja: neither a file nor one of hh, plain, pair",
        ),
        ((reward, "policy.template=pair"), "policy.template=pair: a policy continues one text"),
        ((reward, "reward.template=plain", "reward.end_token=maybe"), "reward.end_token"),
        (("reward.path=bert", "reward.end_token=true"), "has no end token"),
    ):
        refused = r2m("evaluate", *given, *arguments, code=2).stderr
        assert says in refused
        assert "Traceback" not in refused


def test_a_model_fitted_in_another_form_is_another_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(MINE)

    def cached(**changed: Any) -> str:
        return reward_cache(replace(Config(), reward=replace(RewardConfig(), **changed))).name

    names = [cached(), cached(template="hh"), cached(end_token=False), cached(template=str(file))]
    file.write_text(MINE + " ")
    names.append(cached(template=str(file)))
    assert len(set(names)) == 5
    other = tmp_path / "same.jinja"
    other.write_text(MINE + " ")
    assert cached(template=str(other)) == names[-1], "what is in it counts"
