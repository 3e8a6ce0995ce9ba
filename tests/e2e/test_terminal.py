"""`r2m train` on a real terminal: the panel while it runs, the terminal as it was when it ends, however it ends."""

import re
import sys
from pathlib import Path

import pytest
from conftest import QUICK, rows
from terminal import Terminal, terminal

TRAIN = [sys.executable, "-m", "r2m_cli.cli.main", "train", *QUICK, "hydra.run.dir=run"]
LONG = [*TRAIN, "train.steps=1000", "eval.every=0"]
TWO_RANKS = ["engine=zero", "engine.num_processes=2"]
CTRL_C = "\x03"


def panel_is_gone(shown: Terminal) -> bool:
    return not shown.screen.cursor.hidden and not re.search("[╭╰│]", "".join(shown.lines()))


def first(shown: Terminal, begin: str) -> int:
    """The place of the first line that begins so."""
    return next(place for place, line in enumerate(shown.lines()) if line.startswith(begin))


def steps_of_panel(shown: Terminal) -> list[str]:
    """The steps of the lines that a panel has left: there should be one, its last."""
    return [found[1] for line in shown.lines() if (found := re.match(r"(\d+)/\d+ ", line))]


def under_way(shown: Terminal) -> bool:
    return bool(re.search(r"> policy step(?s:.*) \d+/1000", "\n".join(shown.lines())))


@pytest.mark.long
def test_a_run_shows_its_stages_and_ctrl_c_ends_it_in_good_order(environment: dict[str, str], tmp_path: Path) -> None:
    with terminal(LONG, tmp_path, environment) as shown:
        shown.until(lambda: under_way(shown))
        shown.until(lambda: bool(re.search(r"KL +-?\d+\.\d\d +[▁▂▃▄▅▆▇█]{2,}", "\n".join(shown.lines()))))
        for word in ("rollout", "annotate", "reward step", "reward ", "gold "):
            assert word in "\n".join(shown.lines())
        note, top = (first(shown, begin) for begin in ("note: reward model on", "╭"))
        assert note < top  # what is printed scrolls by above
        shown.type(CTRL_C)
        assert shown.end() == 130
        assert panel_is_gone(shown)
        last = rows(tmp_path / "run")[-1]["step"]
        assert steps_of_panel(shown) == [str(last)]
        assert shown.lines()[-1] == f"r2m: stopped after step {last} of 1000; continue with: r2m train resume=run"
        assert (tmp_path / "run" / "checkpoints" / f"step_{last}" / "loop.json").is_file()


@pytest.mark.slow
def test_a_run_leaves_its_last_line(environment: dict[str, str], tmp_path: Path) -> None:
    with terminal(TRAIN, tmp_path, environment, columns=120) as shown:
        assert shown.end(seconds=120) == 0
        assert panel_is_gone(shown)
        last, wrote, *_ = shown.lines()[-4:]
        assert re.search(r"^2/2 reward \S+ frozen \S+ gold \S+ KL \S+", last)
        assert wrote.startswith("r2m: wrote run: policy/")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [45, 60, 90])
@pytest.mark.parametrize("keys", [CTRL_C, CTRL_C + CTRL_C])
def test_ctrl_c_leaves_no_line_of_the_panel(
    environment: dict[str, str], tmp_path: Path, columns: int, keys: str
) -> None:
    with terminal(LONG, tmp_path, environment, columns) as shown:
        shown.until(lambda: "policy step" in "\n".join(shown.lines()))
        shown.type(keys)
        assert shown.end() == 130
        assert panel_is_gone(shown)
        assert len(steps_of_panel(shown)) == 1
        assert "r2m: stopped " in "\n".join(shown.lines())


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_has_a_line_of_its_own(environment: dict[str, str], tmp_path: Path) -> None:
    with terminal(LONG, tmp_path, environment) as shown:
        shown.until(lambda: "loading policy" in "\n".join(shown.lines()))
        shown.type(CTRL_C)
        assert shown.end() == 130
        assert "r2m: stopping after this step, with a checkpoint; once more to stop now" in shown.lines()
        assert steps_of_panel(shown) == ["1"]


@pytest.mark.slow
def test_two_ranks_share_the_terminal_with_their_parent(environment: dict[str, str], tmp_path: Path) -> None:
    with terminal([*LONG, *TWO_RANKS], tmp_path, environment) as shown:
        shown.until(lambda: under_way(shown))
        shown.type(CTRL_C)
        assert shown.end() == 130
        assert panel_is_gone(shown)
        assert any(line.startswith("r2m: stopped after step") for line in shown.lines())


@pytest.mark.slow
def test_ranks_that_are_killed_leave_the_cursor_behind(environment: dict[str, str], tmp_path: Path) -> None:
    with terminal([*LONG, *TWO_RANKS, "ppo.prompts_per_step=512"], tmp_path, environment) as shown:
        shown.until(lambda: "> rollout" in "\n".join(shown.lines()))
        shown.type(CTRL_C)
        shown.until(lambda: "stopping after this step" in "\n".join(shown.lines()))
        shown.type(CTRL_C)
        assert shown.end() == 130
        assert not shown.screen.cursor.hidden
        assert shown.screen.cursor.x == 0
