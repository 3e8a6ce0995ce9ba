"""Golden trajectories: five steps of every optimiser and every feedback variant, through the command, as they were committed.

`make trajectories` writes them again. A changed one is a changed method: say why in the changelog.
"""

import json
import os
from pathlib import Path

import pytest
from conftest import QUICK, Run, rows

from r2m_cli.config.registry import ESTIMATORS, FEEDBACKS

FILE = Path(__file__).with_name("trajectories.json")
WRITE = os.environ.get("R2M_WRITE_TRAJECTORIES") == "1"
LABELS = ("feedback.dim=64", "feedback.warmup_epochs=2")
CASES = {
    **{f"{name}-r2m": (f"ppo={name}",) for name in ESTIMATORS},
    **{f"rloo-{kind}": (f"feedback={kind}",) for kind in FEEDBACKS if kind != "r2m"},
    **{f"rloo-{kind}": (f"feedback={kind}", *LABELS) for kind in ("r2m_safe", "r2m_judged")},
    "ppo-none": ("ppo=ppo", "feedback=none"),
}
SMALL = (*QUICK, "train.steps=5", "eval.every=0", "checkpoint.export=false", "logger.samples_every=0")
SHOWN = (
    "loss", "grad_norm", "reward", "reward_frozen", "gold", "kl", "critic/loss", "critic/grad_norm",
    "reward_model/loss", "reward_model/grad_norm", "reward_model/replay_loss",
)  # fmt: skip
# Another processor adds up in another order. A single forward differs by 1e-6 of its scale; the fit of the models and five
# steps carry that on.
RELATIVE, ABSOLUTE = 2e-3, 1e-5


def text_of(golden: dict[str, list[dict[str, float]]]) -> str:
    """One line a step, so that a change shows where it begins."""
    cases = (f'"{case}": [\n' + ",\n".join(map(json.dumps, steps)) + "\n]" for case, steps in golden.items())
    return "{\n" + ",\n".join(cases) + "\n}\n"


@pytest.mark.parametrize("case", CASES)
def test_five_steps_are_those_that_were_committed(r2m: Run, tmp_path: Path, case: str) -> None:
    r2m("train", *SMALL, *CASES[case], "hydra.run.dir=run")
    made = [{name: row[name] for name in SHOWN if name in row} for row in rows(tmp_path / "run")]
    assert len(made) == 5
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if WRITE:
        FILE.write_text(text_of(golden | {case: made}))
        return
    for step, (row, known) in enumerate(zip(made, golden[case], strict=True), start=1):
        assert row == pytest.approx(known, rel=RELATIVE, abs=ABSOLUTE), f"step {step}"


def test_the_committed_trajectories_are_those_of_the_cases() -> None:
    assert set(json.loads(FILE.read_text())) == set(CASES)
