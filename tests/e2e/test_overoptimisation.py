"""The study's arithmetic by hand, against scipy, and the whole of it in a world that the repository does not know."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

STUDY = Path(__file__).parents[2] / "experiments" / "overoptimisation"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDY))


def test_gold_at_a_kl_lies_on_the_line_between_two_evaluations() -> None:
    from results import area, at_kl

    gold, kl = np.array([2.0, 3.0, 1.0]), np.array([0.0, 2.0, 6.0])
    assert at_kl(gold, kl, 1.0) == pytest.approx(2.5)
    assert at_kl(gold, kl, 4.0) == pytest.approx(2.0)
    assert np.isnan(at_kl(gold, kl, 6.5))
    # The first passing counts, though the KL falls below it later.
    assert at_kl(np.array([0.0, 4.0, 8.0, 9.0]), np.array([0.0, 4.0, 2.0, 6.0]), 3.0) == pytest.approx(3.0)
    assert np.isnan(area(gold, kl, 8.0))
    assert area(np.array([1.0, 3.0]), np.array([0.0, 8.0]), 8.0) == pytest.approx(2.0, abs=0.05)


def test_holm_by_hand() -> None:
    from compare import holm

    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    corrected = holm([float("nan"), 0.02])
    assert np.isnan(corrected[0])
    assert corrected[1] == pytest.approx(0.02)
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def table() -> pd.DataFrame:
    """Three methods, five seeds, two weights; `worse` has no run at the frontier."""
    rng = np.random.default_rng(0)
    rows = []
    for method, lift, betas in (("rloo", 0.0, (0.05, 0.4)), ("r2m_safe", 1.0, (0.05, 0.1)), ("worse", -1.0, (0.4,))):
        for beta in betas:
            for seed in range(10, 15):
                gold = lift + beta + rng.normal() / 10
                rows.append(
                    {"world": "w", "method": method, "beta": beta, "seed": seed, "gold_end": gold, "gold_peak": gold}
                    | {f"gold_{name}": gold - 1 for name in ("kl4", "kl6", "kl8", "area")}
                )
    return pd.DataFrame(rows)


def test_a_comparison_is_a_paired_t_test_at_each_methods_own_weight() -> None:
    from compare import compare, holm

    runs = table()
    found = compare(runs, {"w": {"rloo": 0.4, "r2m_safe": 0.1, "worse": 0.4}}).set_index(
        ["measure", "method", "against"]
    )

    def column(method: str, beta: float, measure: str) -> np.ndarray:
        return runs[(runs.method == method) & (runs.beta == beta)].sort_values("seed")[measure].to_numpy()

    ours, theirs = column("r2m_safe", 0.1, "gold_end"), column("rloo", 0.4, "gold_end")
    test = stats.ttest_rel(ours, theirs)
    row = found.loc["gold_end", "r2m_safe", "rloo"]
    assert row.difference == pytest.approx((ours - theirs).mean())
    assert row.p == pytest.approx(test.pvalue)
    assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval()))
    ps = [found.loc["gold_end", method, "rloo"].p for method in ("r2m_safe", "worse")]
    assert [found.loc["gold_end", method, "rloo"].p_holm for method in ("r2m_safe", "worse")] == pytest.approx(holm(ps))
    at_frontier = found.loc["gold_kl4", "r2m_safe", "rloo"]
    assert at_frontier.difference == pytest.approx(
        (column("r2m_safe", 0.05, "gold_kl4") - column("rloo", 0.05, "gold_kl4")).mean()
    )
    assert ("gold_kl4", "worse", "rloo") not in found.index


def test_the_weight_chosen_is_the_largest_within_a_standard_error_of_the_best() -> None:
    from results import best_beta

    # Means 2.7, 2.63, 2.5, 2.3; the best has a standard error of 0.3.
    golds = {0.1: [3.0, 3.0, 2.1], 0.2: [2.6, 2.7, 2.6], 0.4: [2.4, 2.6, 2.5], 0.8: [2.3, 2.3, 2.3]}
    runs = pd.DataFrame([{"beta": beta, "gold_end": gold} for beta, found in golds.items() for gold in found])
    assert best_beta(runs) == 0.4
    assert best_beta(runs.groupby("beta").head(1)) == 0.1  # one seed has no standard error


def test_each_method_gets_a_weight_of_its_own(tmp_path: Path) -> None:
    import study

    (tmp_path / "choose").mkdir()
    study.choose(table(), tmp_path)
    best = study.chosen(tmp_path)
    assert best["w"] == {"rloo": 0.4, "r2m_safe": 0.1, "worse": 0.4}
    known = study.methods(3000, 60)
    assert study.betas("final", "w", "r2m_safe", known, best) == ["0.05", "0.1"]
    assert study.betas("final", "w", "own_states", known, best) == ["0.05", "0.1"]  # that of r2m_safe
    assert study.betas("final", "w", "offline_labels", known, best) == ["0.4"]
    assert study.betas("final", "w", "kl_target", known, best) == ["0.05"]
    assert "feedback.judge_pairs=7.5" in known["r2m_judged"].overrides
    assert all("data.pairs=3450" in known[name].overrides for name in ("offline_labels", "offline_labels_safe"))
    # Where a world's fit is of a head alone its settings are not those of a whole reward model.
    assert "reward.fit.lr=3e-3" in study.methods(4000, 60, "head")["pretrained_rm"].overrides
    assert known["pretrained_rm"].overrides == ["+method=pretrained_rm", "data.pairs=6000"]
    own = study.own_weights(tmp_path)["w"]
    assert own["own_states"] == own["offline_labels_safe"] == own["r2m_safe"] == 0.1
    assert (own["offline_labels"], own["kl_target"]) == (0.4, 0.05)
    # One method chosen anew in a world of the repository leaves its other methods' weights as they are.
    kept = study.chosen(tmp_path / "nothing")["strong_tuned"]
    (tmp_path / "choose" / "chosen.json").write_text(json.dumps({"strong_tuned": {"r2m_judged": 0.8}}))
    assert kept["r2m_judged"] != 0.8
    assert study.chosen(tmp_path)["strong_tuned"] == kept | {"r2m_judged": 0.8}
    with pytest.raises(SystemExit, match=r"study\.py choose world=elsewhere"):
        study.betas("final", "elsewhere", "rloo", known, best)


@pytest.mark.slow
def test_the_study_in_a_world_of_ones_own(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "configs" / "world").mkdir(parents=True)
    (tmp_path / "configs" / "world" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [one_class, _self_]\n"
        "data: {pairs: 80, demonstrations: 80, label_bias: 0.4}\n"
        "train: {steps: 2}\neval: {every: 1, prompts: 8, reward_check_pairs: 8}\nppo: {prompts_per_step: 8}\n"
    )
    own = ["world=mine", f"--config-dir={tmp_path / 'configs'}", "train.steps=2"]

    def study(*arguments: str) -> pd.DataFrame:
        command = [sys.executable, str(STUDY / "study.py"), *arguments, *own]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stdout + done.stderr
        return pd.read_csv(tmp_path / "outputs" / "study" / arguments[0] / "results.csv")

    tried = study("choose", "seed=0,1")
    assert len(tried) == 2 * (5 + 5 + 5)
    best = json.loads((tmp_path / "outputs/study/choose/chosen.json").read_text())["mine"]
    assert set(best) == {"rloo", "r2m_safe", "r2m_judged"}
    final = study("final", "seed=7")
    assert set(final["method"]) == {
        "rloo", "r2m_safe", "r2m_judged", "own_states", "reference_states", "offline_labels", "offline_labels_safe", "rloo_r2m",
        "ensemble", "kl_target", "grpo", "grpo_r2m", "remax", "reinforce_pp", "frozen", "noise", "without_bt", "without_gre",
        "head_only", "pretrained_rm",
    }  # fmt: skip
    assert final.set_index("method").loc["r2m_judged", "labels"].max() == 80 + 12  # 15% of its pairs
    assert final["gold_end"].notna().all()


def test_a_method_that_does_not_exist_is_named(tmp_path: Path) -> None:
    command = [sys.executable, str(STUDY / "study.py"), "quick", "world=one_class", "method=nonsense"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "method=nonsense: the choices are rloo, " in done.stderr
