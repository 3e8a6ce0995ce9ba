"""The help: a word's own keys with their values, and one key, section or group explained."""

import sys

import pytest
from composition import files
from hydra.core.global_hydra import GlobalHydra

from r2m_cli.cli.help import explained, names
from r2m_cli.cli.main import WORDS, main
from r2m_cli.config.check import keys
from r2m_cli.config.combinations import check_words
from r2m_cli.config.keys import ALL, READ_BY, keys_read_by, words_of
from r2m_cli.config.schema import Config
from r2m_cli.errors import UserError


def said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    monkeypatch.setattr(sys, "argv", ["r2m", *arguments])
    GlobalHydra.instance().clear()
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code or 0  # type: ignore[assignment]
    found = capfd.readouterr()
    assert status == code, found.err
    assert "Traceback" not in found.err
    return found.err if code else found.out


def test_every_key_is_read_by_a_word_and_every_entry_is_a_key() -> None:
    for key in keys():
        assert words_of(key), key
    for begin in READ_BY:
        assert any(key == begin or key.startswith(f"{begin}.") for key in keys()), begin
    assert [key.name for key in keys_read_by("report")] == ["runs", "out"]


@pytest.mark.parametrize("word", ALL)
def test_no_word_lists_a_key_that_it_refuses(word: str) -> None:
    listed = {key.name for key in keys_read_by(word)}
    for key, value in (("resume", "a"), ("run", "a"), ("runs", ["a"]), ("output", "a")):
        config = Config(task=word, **{key: value})
        if key in listed:
            check_words(config)
        else:
            with pytest.raises(UserError, match=key):
                check_words(config)


def test_a_words_help_has_its_keys_with_the_values_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    page = said(
        monkeypatch, capfd, "train", "ppo.beta=0.25", "--help", "feedback=none", "-m", "seed=1,2", "data.path=a b"
    )
    for line in ("ppo.beta=0.25", "feedback.kind=none", "seed=0", "data.path=a b"):
        assert f"  {line} " in page
    assert "analysis.sequences" not in page
    assert max(map(len, page.splitlines())) <= 120
    for group in ("feedback", "sweep"):
        assert f"{group}: {', '.join(files(group))[:60]}" in page
    assert "ppo." not in said(monkeypatch, capfd, "sft", "--help")
    assert "runs=[]" in said(monkeypatch, capfd, "report", "--help")
    assert "did you mean ppo.beta?" in said(monkeypatch, capfd, "train", "--help", "ppo.bta=1", code=2)


def test_one_key_is_explained(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    text = said(monkeypatch, capfd, "help", "ppo.algorithm")
    for part in ("advantage estimator", "default: rloo", "values: rloo, grpo", "read by: r2m train"):
        assert part in text
    assert "at least 1, at most 10000" in explained("policy.fit.epochs")
    assert "read by: r2m report" in explained("out")
    assert "ppo=grpo" in explained("ppo")
    assert "ppo.critic.lr=0.001" in explained("ppo.critic")
    assert "+method=rloo" in explained("method")
    assert "joblib" in explained("hydra/launcher")
    assert said(monkeypatch, capfd, "help", "sft") == said(monkeypatch, capfd, "sft", "--help")
    assert "did you mean ppo.beta" in said(monkeypatch, capfd, "help", "ppo.bta", code=2)
    assert "r2m train --cfg hydra" in said(monkeypatch, capfd, "help", "hydra.run.dir", code=2)
    assert said(monkeypatch, capfd, "help", "--help") == said(monkeypatch, capfd, "help")


def test_everything_that_has_a_name_can_be_explained() -> None:
    for name in names():
        assert len(explained(name)) > 20


def test_the_shell_completes_help(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for line, expected in (("r2m he", "help"), ("r2m help ppo.bet", "ppo.beta"), ("r2m help tra", "train")):
        monkeypatch.setenv("COMP_LINE", line)
        assert expected in said(monkeypatch, capfd, "-sc", "query=bash").split()


def test_help_costs_no_import_of_torch() -> None:
    import subprocess

    code = "import sys; from r2m_cli.cli.main import main; sys.argv = ['r2m', sys.argv[1], sys.argv[2]]; main(); assert 'torch' not in sys.modules"
    for arguments in (("train", "--help"), ("help", "ppo")):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


def test_every_word_has_a_page() -> None:
    assert {*WORDS} == {*ALL, "report"}
