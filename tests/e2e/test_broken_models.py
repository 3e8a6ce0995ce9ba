"""Commands on model folders that are not what they should be: refused before anything is fitted, warned of where they work."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import QUICK, Run
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.mark.long
def test_broken_folders_are_refused_before_anything_is_fitted(r2m: Run, tmp_path: Path) -> None:
    r2m("reward", *QUICK, "output=rm")
    rm = tmp_path / "rm"

    def spoilt(name: str) -> Path:
        return shutil.copytree(rm, tmp_path / name)

    bare = spoilt("bare")
    for file in bare.glob("*token*"):
        file.unlink()
    pointer = spoilt("pointer")
    (pointer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    lost = spoilt("lost")
    tensors = load_file(lost / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.0." not in k}, lost / "model.safetensors", {"format": "pt"})
    for word, key, name, says in (
        ("train", "reward.path", "bare", "holds no tokenizer (tokenizer.json)"),
        ("train", "reward.path", "pointer", "is a Git LFS pointer"),
        ("evaluate", "reward.path", "bare", "holds no tokenizer (tokenizer.json)"),
        ("evaluate", "eval.reward", "bare", f"eval.reward={bare}: the folder holds no tokenizer"),
        ("reward", "reward.base", "bare", "holds no tokenizer (tokenizer.json)"),
        ("reward", "reward.base", "pointer", "is a Git LFS pointer"),
    ):
        # a policy that would have to be fitted first
        said = r2m(
            word, *QUICK, "policy.fit.epochs=7", f"{key}={name}", "output=out" if word == "reward" else "seed=1", code=2
        )
        assert says in said.stderr
        assert said.stderr.count("\n") == 2, "nothing is fitted: the line that it is checked, and the error"
        assert not (tmp_path / "out").exists()
    assert "its weights lack model.layers.0." in r2m("train", *QUICK, "reward.path=lost", code=2).stderr


@pytest.mark.long
def test_equal_rewards_are_said_in_evaluation_and_fitting(r2m: Run, tmp_path: Path) -> None:
    r2m("reward", *QUICK, "output=rm")
    tensors = load_file(tmp_path / "rm" / "model.safetensors")
    flat = tensors | {"score.weight": torch.zeros_like(tensors["score.weight"])}
    save_file(flat, tmp_path / "rm" / "model.safetensors", {"format": "pt"})
    r2m("evaluate", *QUICK, "reward.path=rm", "hydra.run.dir=e")
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert any("replies are all equal" in note for note in found["notes"])
    fitted = r2m("reward", *QUICK, "reward.base=rm", "reward.fit.lr=0", "output=again")
    assert "r2m: warning: the rewards of chosen and rejected replies are all equal" in fitted.stdout
    assert "all equal" not in r2m("reward", *QUICK, "output=other").stdout


@pytest.mark.long
def test_no_model_of_an_evaluation_may_read_all_texts_as_unknown_words(r2m: Run, tmp_path: Path) -> None:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "да": 2, "нет": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    foreign = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")
    for word, name in (("reward", "rm"), ("sft", "lm")):
        r2m(word, *QUICK, f"output={name}")
        shutil.copytree(
            tmp_path / name, tmp_path / f"foreign_{name}", ignore=shutil.ignore_patterns("*token*", "*.jinja")
        )
        foreign.save_pretrained(tmp_path / f"foreign_{name}")
    given = (*QUICK, "policy.path=lm", "reward.path=rm")
    for word, whose, further in (
        ("train", "reward model", ("reward.paths=[foreign_rm]", "reward.members=2", "feedback=none")),
        ("evaluate", "reward model", ("reward.paths=[foreign_rm]", "reward.members=2", "feedback=none")),
        ("evaluate", "reward model of eval.reward", ("eval.reward=foreign_rm",)),
        ("evaluate", "policy of eval.against", ("eval.against=foreign_lm", "eval.judge=gold")),
        ("analyze", "reward model", ("reward.path=foreign_rm",)),
    ):
        said = r2m(word, *given, *further, code=2).stderr
        assert f"error: the {whose}'s tokenizer does not know 100% of the data's words" in said
