"""Commands on model folders that are not what they should be: refused before anything is fitted, warned of where they work."""

import json
import shutil
from pathlib import Path

import torch
from conftest import QUICK, Run
from safetensors.torch import load_file, save_file


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
