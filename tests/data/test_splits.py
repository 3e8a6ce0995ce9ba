"""Folders of files: which of them are a split is what `datasets` says, less what would join different parts."""

import json
import os
from pathlib import Path

import datasets
import pytest

from r2m_cli.data.preferences import load_preferences
from r2m_cli.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "set"


def fill(folder: Path, **rows: int) -> None:
    """Files with so many rows each, whose prompts name the file; "__" in a keyword is a folder's end."""
    for name, count in rows.items():
        write(folder, name.replace("__", "/") + ".jsonl", count)


def write(folder: Path, name: str, count: int) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": f"{name} {i}", "chosen": "a", "rejected": "b"}) for i in range(count)]
    file.write_text("\n".join(lines))


def prompts(folder: Path, split: str = "train", subset: str | None = None) -> list[str]:
    return [prompt[-1]["content"] for prompt in load_preferences(str(folder), split, subset=subset).prompts]


LAYOUTS = {
    "by folder": {"train__0": 3, "test__0": 2, "validation__0": 1},
    "by file name": {"train": 3, "test": 2, "validation": 1},
    "by file name, in folders": {"harmless__train": 3, "helpful__train": 1, "harmless__test": 2, "helpful__test": 1},
    "numbered": {"train_0": 3, "train_1": 2, "test_0": 1},
    "shards of the hub": {"data__train-00000-of-00002": 3, "data__train-00001-of-00002": 2, "data__test-00000-of-00001": 1},
    "shards with a hash": {"data__train-00000-of-00002-0a1b": 3, "data__train-00001-of-00002-4c5d": 2},
    "shards of splits with long names": {"data__train_prefs-00000-of-00001": 3, "data__test_prefs-00000-of-00001": 1},
    "synonyms": {"training": 3, "dev": 2, "eval": 1},
    "no splits": {"a": 2, "b": 1},
    "letters within a split's folder": {"train__part_a": 2, "train__part_b": 1, "test__part_a": 1},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_those_of_datasets(layout: str, folder: Path, tmp_path: Path) -> None:
    fill(folder, **LAYOUTS[layout])
    theirs = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    for split, rows in theirs.items():
        assert sorted(prompts(folder, str(split))) == sorted(rows["prompt"])


@pytest.mark.parametrize("hidden", [".cache/huggingface/train.jsonl", "._train.jsonl", "__MACOSX/train.jsonl",
                                    ".ipynb_checkpoints/train-checkpoint.jsonl", "train/.part.jsonl"])  # fmt: skip
def test_hidden_files_are_not_read(hidden: str, folder: Path) -> None:
    fill(folder, train=1)
    write(folder, hidden, 1)
    assert prompts(folder) == ["train.jsonl 0"]


@pytest.mark.parametrize("prefix", ["", "data__", "train__"])
def test_parts_of_one_split_are_not_joined(prefix: str, folder: Path) -> None:
    """`datasets` says that train_prefs and train_sft are `train`; a person means one of them."""
    names = ["train_prefs", "train_sft"]
    fill(
        folder, **({f"{name}__0": 1 for name in names} if prefix == "train__" else {prefix + name: 1 for name in names})
    )
    with pytest.raises(UserError, match=r"'train' could be any of train_prefs, train_sft; set data\.split"):
        prompts(folder)
    assert len(prompts(folder, "train_sft")) == 1


@pytest.mark.parametrize("shards", ["{}", "{}-0000{}-of-00002", "{}__{}", "data__{}_{}"])
def test_a_part_of_exactly_the_name_is_the_split(shards: str, folder: Path) -> None:
    for name, count in (("train", 3), ("train_prefs", 1), ("train_sft", 1)):
        fill(folder, **{shards.format(name, shard): count for shard in range(2)})
    found = prompts(folder)
    assert len(found) == 3 * len({shards.format("train", shard) for shard in range(2)})
    assert not any("prefs" in prompt or "sft" in prompt for prompt in found)
    assert all("sft" in prompt for prompt in prompts(folder, "train_sft"))


def test_splits_in_capitals_are_not_joined(folder: Path) -> None:
    fill(folder, Train=1, Test=1)
    with pytest.raises(UserError, match="could be any of Test, Train"):
        prompts(folder)
    assert prompts(folder, "Test") == ["Test.jsonl 0"]


def test_a_split_that_is_not_there_lists_those_that_are(folder: Path) -> None:
    fill(folder, **{"data__train_prefs-00000-of-00001": 1, "data__test_sft-00000-of-00001": 1})
    with pytest.raises(UserError, match="no split 'train'; it has test_sft, train_prefs"):
        prompts(folder)


@pytest.mark.parametrize("split", ["validation", "val", "valid", "dev"])
def test_synonyms_of_a_split(split: str, folder: Path) -> None:
    fill(folder, train=1, val=1)
    assert prompts(folder, split) == ["val.jsonl 0"]


README = """---
configs:
- config_name: harmless
  data_files: a/*.jsonl
- config_name: helpful
  data_files:
  - {split: train, path: b/x.jsonl}
  - {split: extra, path: [b/x.jsonl, a/x.jsonl]}
---
"""


def test_subsets_that_a_readme_names(folder: Path) -> None:
    fill(folder, a__x=1, b__x=2)
    (folder / "README.md").write_text(README)
    assert prompts(folder, subset="harmless") == ["a/x.jsonl 0"]
    assert len(prompts(folder, subset="helpful")) == 2
    assert len(prompts(folder, "extra", "helpful")) == 3
    with pytest.raises(UserError, match=r"set data\.subset to one; it has harmless, helpful"):
        prompts(folder)
    with pytest.raises(UserError, match="no subset 'x'; it has harmless, helpful"):
        prompts(folder, subset="x")
    with pytest.raises(UserError, match="no split 'test'; it has train, extra"):
        prompts(folder, "test", "helpful")
    (folder / "README.md").write_text(README.replace("helpful", "default"))
    assert len(prompts(folder)) == 2


@pytest.mark.parametrize(("readme", "what"), [
    ("---\nconfigs: 3\n---\n", "README.md: its header cannot be read"),
    ("---\nconfigs: [\n---\n", "README.md: its header cannot be read"),
    ("---\nconfigs:\n- {config_name: a, data_files: nothing/*}\n---\n", "none of the data files that it names exists"),
    ("---\nconfigs:\n- {config_name: a, data_files: 'https://x.org/y.jsonl'}\n---\n", "files that are not on this machine"),
])  # fmt: skip
def test_a_readme_that_cannot_be_followed(readme: str, what: str, folder: Path) -> None:
    fill(folder, train=1)
    (folder / "README.md").write_text(readme)
    with pytest.raises(UserError, match=what):
        prompts(folder)


def test_no_readme_names_the_subset(folder: Path) -> None:
    fill(folder, train=1)
    with pytest.raises(UserError, match=r"no subset 'a': its README names none"):
        prompts(folder, subset="a")


def test_files_of_several_kinds_are_refused(folder: Path) -> None:
    """The same rows may be there twice; `datasets` reads the kind of which there are most."""
    fill(folder, train=1)
    (folder / "train.csv").write_text("prompt\nhi\n")
    with pytest.raises(UserError, match=r"several kinds \(train\.csv, train\.jsonl\)"):
        prompts(folder)


@pytest.mark.parametrize("name", ["a[1]", "x (1)=é", "O'Brien, *"])
def test_folders_of_any_name(name: str, tmp_path: Path) -> None:
    fill(tmp_path / name, train=1, test=1)
    assert prompts(tmp_path / name) == ["train.jsonl 0"]
    assert load_preferences(str(tmp_path / name)).pairs[0].where == f"{tmp_path / name}/train.jsonl:1"


def test_links_to_files_are_followed_and_loops_are_not(folder: Path) -> None:
    write(folder.parent, "blobs/abc", 1)
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train-00000-of-00001.jsonl").symlink_to("../../blobs/abc")
    (folder / "loop").symlink_to(folder)
    assert prompts(folder) == ["blobs/abc 0"]


def test_pipes_in_a_folder_are_not_opened(folder: Path) -> None:
    fill(folder, train=1)
    os.mkfifo(folder / "train_1.jsonl")
    assert prompts(folder) == ["train.jsonl 0"]
