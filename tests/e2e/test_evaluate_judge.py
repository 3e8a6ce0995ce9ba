"""Win rates by a language model: `r2m evaluate eval.judge=openai` against a real local server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import QUICK, Run, rows
from judge_server import LongerIsBetter, Refusing, served


@pytest.fixture
def url() -> Iterator[str]:
    with served(LongerIsBetter) as address:
        yield address


def test_a_language_model_judges_and_is_asked_once(r2m: Run, tmp_path: Path, url: str) -> None:
    asked = (*QUICK, "eval.judge=openai", f"judge.url={url}")
    said = r2m("evaluate", *asked, "hydra.run.dir=first").stdout
    assert "eval.judge=openai: 16 requests, 0 verdicts from the cache" in said, "eight prompts in two orders"
    compared = rows(tmp_path / "first", "comparisons.jsonl")
    for row in compared:
        longer = len(row["response"]) - len(row["other"])
        assert row["preference"] == (0.5 if longer == 0 else float(longer > 0))
    figures = json.loads((tmp_path / "first" / "evaluation.json").read_text())
    assert figures["win_rate"] == sum(row["preference"] for row in compared) / 8
    assert 0 <= figures["win_rate/length_controlled"] <= 1

    again = r2m("evaluate", *asked, "hydra.run.dir=second").stdout
    assert "0 requests, 16 verdicts from the cache" in again
    assert rows(tmp_path / "second", "comparisons.jsonl") == compared


@pytest.mark.parametrize("word", ["train", "evaluate"])
def test_an_endpoint_that_is_not_there_is_one_line_before_anything_is_fitted(
    r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("R2M_CACHE", str(tmp_path / "cache"))
    dead = ("feedback.judge=openai", "eval.judge=openai", "judge.url=http://127.0.0.1:9/v1")
    refused = r2m(word, *QUICK, *dead, "hydra.run.dir=run", code=2)
    (line,) = [line for line in refused.stderr.splitlines() if "error" in line]
    assert line == (
        "r2m: error: judge.url=http://127.0.0.1:9/v1: no answer (connection refused); start the server, or correct judge.url"
    )
    assert "Traceback" not in refused.stderr
    assert not refused.stdout
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache").glob("policy-*"))


def test_an_endpoint_that_refuses_is_one_line_and_the_other_figures_stay(r2m: Run, tmp_path: Path) -> None:
    with served(Refusing) as address:
        asked = ("eval.judge=openai", f"judge.url={address}")
        refused = r2m("evaluate", *QUICK, *asked, "hydra.run.dir=run", code=2)
    assert "HTTP 401" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "eval/gold" in json.loads((tmp_path / "run" / "evaluation.json").read_text())
