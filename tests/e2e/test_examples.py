"""The examples as they stand there, with small numbers; the one for GPUs is composed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import QUICK, Run
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path):
    """Run an example in an empty folder; gives what it printed."""

    def run(name: str, *arguments: str, **variables: str) -> str:
        command = [sys.executable] if name.endswith(".py") else ["bash"]
        done = subprocess.run(
            [*command, EXAMPLES / name, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
            env=environment | variables | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.mark.slow
def test_the_gold_world(start, tmp_path: Path) -> None:
    said = start("1_gold_world.py", *QUICK)
    assert "R2M with labelled pairs: gold " in said
    assert (tmp_path / "outputs" / "gold_world.html").is_file()


@pytest.mark.long
def test_a_reward_function(start) -> None:
    assert "reward_function" in start("2_reward_function.py", *QUICK)


@pytest.mark.slow
def test_own_pairs(start, r2m: Run, tmp_path: Path) -> None:
    r2m("sft", *QUICK, "output=base")
    rows = [{"prompt": f"fruit : apple {i}", "chosen": "apple", "rejected": "pear"} for i in range(40)]
    (tmp_path / "my pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = (*QUICK, "policy.path=base", "reward.base=base", "reward.fit.parameters=head", "rollout.max_new_tokens=8")
    said = start("3_own_pairs.sh", "my pairs.jsonl", *small, "rollout.max_prompt_tokens=20", "policy.template=plain")
    assert "pairs/accuracy" in said


@pytest.mark.slow
def test_a_comparison(start, tmp_path: Path) -> None:
    start("4_compare.sh", *QUICK, SEEDS="0")
    assert (tmp_path / "outputs" / "compare" / "page.html").is_file()
    assert len((tmp_path / "outputs" / "compare" / "table.csv").read_text().splitlines()) == 4


def test_eight_gpus(start) -> None:
    config = yaml.safe_load(start("5_eight_gpus.sh", "--cfg", "job"))
    assert (config["engine"]["kind"], config["engine"]["num_processes"], config["engine"]["device"]) == (
        "zero",
        8,
        "cuda",
    )


@pytest.mark.long
def test_the_notebook(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a command that ran in this process has set it
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "more: list[str] = []" in first.source
    notebook.cells.append(nbformat.v4.new_code_cell("gold.plot();"))  # a report has been drawn by then
    first.source = first.source.replace("more: list[str] = []", f"more = {[*QUICK]!r}")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    for plotted in (outputs[2], outputs[-1]):
        assert any("image/png" in output.get("data", {}) for output in plotted)
    assert "did you mean train.steps?" in outputs[-2][0]["text"]


def test_the_notebook_holds_no_outputs() -> None:
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
