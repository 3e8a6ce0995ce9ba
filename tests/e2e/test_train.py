"""`r2m train` through its real entry point in the gold world."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from conftest import QUICK, Run, rows, timeless, under_way
from judge_server import Refusing, served
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from r2m_cli.monitor.catalogue import check_names


def test_a_run_leaves_what_it_promises_and_trains_what_it_should(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "hydra.run.dir=run")
    run = tmp_path / "run"
    start = Path(json.loads(json.dumps(_config(run)))["policy"]["path"])
    proxy = Path(_config(run)["reward"]["path"])

    metrics = rows(run)
    assert [row["step"] for row in metrics] == [0, 1, 2]
    for row in metrics:
        check_names(name for name in row if name != "step")
        assert all(value is not None for value in row.values())
    assert {"gold", "reward", "reward_frozen", "kl", "reward_model/loss", "time/policy_step", "eval/gold"} <= set(
        metrics[2]
    )
    assert metrics[1]["kl"] == pytest.approx(0, abs=1e-4), "the first rollouts come from the reference itself"

    summary = json.loads((run / "summary.json").read_text())
    assert summary["objective"] == metrics[2]["eval/gold"] == summary["gold_end"]
    samples = rows(run, "samples.jsonl")
    assert len(samples) == 4 * 3
    assert {"prompt", "response", "reward", "reward_frozen", "gold", "finished"} <= set(samples[0])

    trained = AutoModelForCausalLM.from_pretrained(run / "policy").state_dict()
    initial = AutoModelForCausalLM.from_pretrained(start).state_dict()
    assert all(not torch.equal(trained[name], initial[name]) for name in initial), "every policy parameter moves"
    AutoTokenizer.from_pretrained(run / "policy")

    after = AutoModelForSequenceClassification.from_pretrained(run / "reward_model").state_dict()
    before = AutoModelForSequenceClassification.from_pretrained(proxy).state_dict()
    moved = [name for name in before if not torch.equal(after[name], before[name])]
    assert moved == ["score.weight"], "of the reward model only the head moves"
    adapter = load_file(run / "reward_model" / "feedback.safetensors")
    assert {"adapter.w_q", "adapter.w_k", "adapter.w_v", "adapter.w_o", "phi.weight"} == set(adapter)


def test_without_feedback_nothing_of_the_reward_model_moves(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "feedback=none", "ppo=grpo", "ppo.beta=0", "hydra.run.dir=run")
    run = tmp_path / "run"
    for row in rows(run)[1:]:
        assert row["reward"] == row["reward_frozen"]
        assert not any(name.startswith(("feedback/", "reward_model/loss")) for name in row)
    after = AutoModelForSequenceClassification.from_pretrained(run / "reward_model").state_dict()
    before = AutoModelForSequenceClassification.from_pretrained(_config(run)["reward"]["path"]).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "method",
    [
        (),
        ("feedback=r2m_judged", "feedback.judge_pairs=1.5", "feedback.source=reference", "ppo.kl_target=0.01",
         "feedback.warmup_epochs=2"),
        ("feedback=r2m_safe", "feedback.source=reward", "feedback.self_labels=agreed"),
        ("ppo=ppo", "policy.lora_rank=4", "feedback=noise", "feedback.warmup_pairs=8", "feedback.replay_pairs=4",
         "feedback.judge=gold"),
    ],
)  # fmt: skip
def test_stopped_and_resumed_equals_uninterrupted(r2m: Run, tmp_path: Path, method: tuple[str, ...]) -> None:
    common = (*QUICK, "train.steps=4", "eval.every=2", *method)
    r2m("train", *common, "hydra.run.dir=whole")
    r2m("train", *common, "hydra.run.dir=parts", "train.stop_at=2")
    assert not (tmp_path / "parts" / "policy").exists()
    r2m("train", "resume=parts", "train.stop_at=null")

    whole, parts = (list(map(timeless, rows(tmp_path / name))) for name in ("whole", "parts"))
    assert whole == parts, "metrics are equal to the last bit"
    assert rows(tmp_path / "whole", "samples.jsonl") == rows(tmp_path / "parts", "samples.jsonl")
    for model in ("policy", "reward_model"):
        weights = [load_file(tmp_path / name / model / "model.safetensors") for name in ("whole", "parts")]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

    again = r2m("train", "resume=parts", code=2)
    assert "are done" in again.stderr
    changed = r2m("train", "resume=parts", "ppo.lr=1", "train.steps=5", code=2)
    assert "ppo.lr" in changed.stderr
    taken = r2m("train", *common, "hydra.run.dir=parts", code=2)
    assert "already holds a run" in taken.stderr


def test_an_interrupt_ends_the_run_with_a_checkpoint(environment: dict[str, str], r2m: Run, tmp_path: Path) -> None:
    with under_way(environment, tmp_path, *QUICK) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "resume=" in said
    last = rows(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step_{last}" / "loop.json").is_file()
    r2m("train", "resume=run", f"train.stop_at={last + 1}")
    assert rows(tmp_path / "run")[-1]["step"] == last + 1


@pytest.mark.long
def test_a_sweep_runs_every_job_and_a_report_reads_them(r2m: Run, tmp_path: Path) -> None:
    r2m("train", "-m", *QUICK, "feedback=r2m,none", "hydra.sweep.dir=sweep")
    folders = sorted(str(p.parent.relative_to(tmp_path / "sweep")) for p in (tmp_path / "sweep").rglob("summary.json"))
    assert len(folders) == 2
    assert folders == ["0_feedback=r2m", "1_feedback=none"]
    r2m("report", "runs=[sweep]", "out=picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert (tmp_path / "picture.csv").is_file()
    runs = [f"sweep/{folder}" for folder in folders]
    said = r2m("report", *runs, "out=new/page.html").stdout
    assert said.splitlines()[-2:] == [
        "r2m: wrote new/page.html, new/page.png, new/page.csv, new/page.md",
        "r2m: next: open new/page.html in a browser",
    ]
    for name, text in (("page.html", ">feedback=r2m</button>"), ("page.csv", "feedback=none"), ("page.png", "")):
        assert text in (tmp_path / "new" / name).read_text(errors="replace")


def test_evaluate_reads_a_run(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "hydra.run.dir=run", "feedback.omega=0.5", "train.steps=3")
    r2m("evaluate", "run=run", "hydra.run.dir=evaluation")
    figures = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    last = rows(tmp_path / "run")[-1]
    for name in (
        "eval/gold",
        "eval/kl",
        "eval/reward",
        "eval/reward_frozen",
        "eval/length",
        "eval/finished",
        "eval/repetition",
    ):
        assert figures[name] == pytest.approx(last[name], abs=1e-5), name
    fitted = json.loads((Path(_config(tmp_path / "run")["reward"]["path"]) / "fit.json").read_text())
    assert figures["pairs/count"] == fitted["heldout"]
    assert figures["pairs/accuracy"] == pytest.approx(fitted["accuracy"])
    assert 0 <= figures["pairs/accuracy_feedback"] <= 1
    missing = r2m("evaluate", "run=nowhere", code=2)
    assert "nowhere" in missing.stderr
    mixed = r2m("train", "run=run", code=2)
    assert "r2m evaluate" in mixed.stderr


@pytest.mark.long
def test_a_refused_continuation_leaves_the_run_as_it_was(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "train.steps=4", "train.stop_at=2", "hydra.run.dir=run")
    before = (tmp_path / "run" / "config.yaml").read_text()
    for change, says in (("train.steps=2", "are done"), ("ppo.lr=1", "ppo.lr")):
        refused = r2m("train", "resume=run", "train.stop_at=null", change, code=2)
        assert says in refused.stderr
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    past = r2m("train", "resume=run", "train.stop_at=1", code=2)
    assert "has no effect" in past.stderr
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    (tmp_path / "run" / "checkpoints" / "step_old").mkdir()  # somebody's own, and no checkpoint
    (tmp_path / "run" / "checkpoints" / "step_old" / "loop.json").write_text("{}")
    r2m("train", "resume=run", "train.stop_at=3")
    (tmp_path / "run" / "checkpoints" / "step_3" / "loop.json").write_text("{}")
    assert "loop.json: has no valid step" in r2m("train", "resume=run", "train.stop_at=null", code=2).stderr


def test_an_impossible_gradient_stops_the_run_and_says_so(r2m: Run, tmp_path: Path) -> None:
    failed = r2m("train", *QUICK, "ppo.lr=1e30", "train.steps=3", "hydra.run.dir=run", code=2)
    assert "not a finite number" in failed.stderr
    assert "Traceback" not in failed.stderr


def _config(run: Path) -> dict:  # type: ignore[type-arg]
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text())


def test_an_evaluation_leaves_the_run_alone_and_may_move_its_lengths(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "hydra.run.dir=run")
    before = (tmp_path / "run" / "config.yaml").read_text()
    refused = r2m("evaluate", "run=run", "hydra.run.dir=run", code=2)
    assert "holds another result" in refused.stderr
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    r2m("evaluate", "run=run", "rollout.max_new_tokens=5", "hydra.run.dir=evaluation")
    figures = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert figures["eval/length"] <= 5


def test_a_stop_may_lie_beyond_the_default_number_of_steps(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "train.steps=150", "train.stop_at=1", "eval.every=0", "hydra.run.dir=run")
    r2m("train", "resume=run", "train.stop_at=2", "train.steps=150")
    late = r2m("train", "resume=run", "train.stop_at=151", code=2)
    assert "train.steps=150" in late.stderr


@pytest.mark.long
def test_a_model_that_moved_with_its_cache_may_be_named_anew(r2m: Run, tmp_path: Path) -> None:
    r2m("sft", *QUICK, "output=first")
    r2m("train", *QUICK, f"policy.path={tmp_path}/first", "train.stop_at=1", "hydra.run.dir=run")
    (tmp_path / "first").rename(tmp_path / "second")
    assert "first" in r2m("train", "resume=run", "train.stop_at=null", code=2).stderr
    r2m("train", "resume=run", "train.stop_at=null", f"policy.path={tmp_path}/second")
    other = r2m("train", "resume=run", "train.steps=3", f"policy.path={tmp_path}/elsewhere", code=2)
    assert "cannot become" in other.stderr


@pytest.mark.long
def test_a_run_is_continued_from_another_folder_with_its_own_models(
    r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    r2m("sft", *QUICK, "output=model")
    r2m("train", *QUICK, "policy.path=model", "train.stop_at=1", "hydra.run.dir=run")
    assert _config(tmp_path / "run")["policy"]["path"] == str(tmp_path / "model")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "model").mkdir(parents=True)  # what the same relative path means there
    monkeypatch.chdir(elsewhere)
    before = json.loads((tmp_path / "run" / "checkpoints" / "step_1" / "loop.json").read_text())["seconds"]
    r2m("train", f"resume={tmp_path}/run")
    last = rows(tmp_path / "run")[-1]["step_time"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"] > before + last
    assert rows(tmp_path / "run")[-1]["step"] == 2
    assert _config(tmp_path / "run")["train"]["stop_at"] is None, "the stop was made; one goes on to the end"


def test_damaged_files_of_a_run_are_one_line(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "train.stop_at=1", "hydra.run.dir=run")
    newest = tmp_path / "run" / "checkpoints" / "step_1"
    (newest / "policy" / "state.pt").write_bytes(b"no weights")
    assert "step_1/policy/state.pt: damaged" in r2m("train", "resume=run", "train.stop_at=null", code=2).stderr
    (newest / "loop.json").write_text("{")
    assert "loop.json" in r2m("train", "resume=run", "train.stop_at=null", code=2).stderr
    (tmp_path / "run" / "config.yaml").write_text("a: [")
    broken = r2m("train", "resume=run", code=2).stderr
    assert "not valid YAML" in broken
    assert "Traceback" not in broken


def test_other_lengths_are_another_starting_policy(r2m: Run, tmp_path: Path) -> None:
    """The demonstrations are cut to the lengths of the rollouts: a policy fitted on stumps must not be found again."""
    r2m("train", *QUICK, "rollout.max_new_tokens=2", "hydra.run.dir=short_run")
    r2m("train", *QUICK, "hydra.run.dir=run")
    paths = [
        yaml.safe_load((tmp_path / name / "config.yaml").read_text())["policy"]["path"] for name in ("short_run", "run")
    ]
    assert paths[0] != paths[1]


@pytest.mark.long
@pytest.mark.parametrize("word", ["train", "sft", "reward"])
def test_a_policy_that_could_not_read_its_own_responses_is_refused_before_it_is_fitted(
    r2m: Run, tmp_path: Path, word: str
) -> None:
    said = r2m(word, *QUICK, "rollout.max_new_tokens=600", code=2).stderr
    assert "rollout.max_new_tokens = 664, but the small policy that is fitted here reads 512 tokens at most" in said
    assert "fitting one" not in said
    r2m("train", *QUICK, "hydra.run.dir=run")
    named = f"policy.{'base' if word == 'sft' else 'path'}={tmp_path / 'run' / 'policy'}"
    said = r2m(word, *QUICK, named, "rollout.max_new_tokens=600", code=2).stderr
    assert f"rollout.max_new_tokens = 664, but {named} reads 512 tokens at most" in said


@pytest.mark.long
def test_a_reward_model_is_no_policy(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "hydra.run.dir=run")
    (tmp_path / "a copy (1)").symlink_to("run")  # such a name is read as it is typed
    said = r2m("evaluate", "run=a copy (1)", "eval.reward=run/reward_model", "hydra.run.dir=evaluation").stderr
    assert "run/reward_model comes from a run with feedback and is used here without the policy's states" in said
    assert "; a run's policy is in its policy/" in r2m("train", *QUICK, "policy.path=run", code=2).stderr
    scorer, policy = (tmp_path / "run" / name for name in ("reward_model", "policy"))
    for key in ("policy.path", "eval.against"):
        word = ("train", *QUICK) if key == "policy.path" else ("evaluate", "run=run", "eval.judge=gold")
        refused = r2m(*word, f"{key}={scorer}", code=2).stderr
        assert f"{key}={scorer}: it is a LlamaForSequenceClassification" in refused
    refused = r2m("train", *QUICK, "policy.fit.epochs=1", f"reward.path={policy}", code=2).stderr
    assert "it is a LlamaForCausalLM and has no trained scoring head" in refused
    assert "fitting one" not in refused
    # A classifier of more than one class, and a model whose weights and configuration do not belong together.
    for name, changes, says in (
        ("classifier", {}, "its head has 3 outputs"),
        ("other", {"hidden_size": 32}, "in its config.json"),
    ):
        model = AutoModelForSequenceClassification.from_pretrained(scorer, num_labels=3, ignore_mismatched_sizes=True)
        model.save_pretrained(tmp_path / name)
        for file in scorer.glob("token*"):
            shutil.copy(file, tmp_path / name)
        written = json.loads((tmp_path / name / "config.json").read_text()) | changes
        (tmp_path / name / "config.json").write_text(json.dumps(written))
        assert says in r2m("train", *QUICK, f"reward.path={tmp_path / name}", code=2).stderr
    # A configuration that does not say what it is of: the weights do.
    settings = json.loads((scorer / "config.json").read_text()) | {"tie_word_embeddings": False, "architectures": None}
    (scorer / "config.json").write_text(json.dumps(settings))
    refused = r2m("train", *QUICK, f"policy.path={scorer}", code=2).stderr
    assert "not a causal language model: lm_head.weight is missing" in refused


@pytest.mark.long
def test_a_mistake_takes_nothing_away_and_leaves_nothing_behind(r2m: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "config.yaml").write_text("mine, too\n")
    for command, says in (
        (("report", "nowhere"), "runs: nowhere is not a folder"),
        (("train", "hydra.run.dir=mine", "ppo.lr=-1"), "ppo.lr=-1.0: must be at least 0"),
        (("train", "resume=mine"), "mine/config.yaml: not the configuration of a run"),
        (("train", "ppo.lr=-1"), "ppo.lr=-1.0: must be at least 0"),
        (("train", "data.label_noise=2"), "data.label_noise=2.0: must lie between 0 and 0.5"),
        (("sft", "output=."), "output=.: is the current folder"),
    ):
        said = r2m(*command, code=2).stderr
        lines = [
            line for line in said.splitlines() if "checking models and data" not in line and ": reading " not in line
        ]
        assert len(lines) == 1, "found before anything is fitted"
        assert says in lines[0]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.yaml", "config.yaml", "mine"]


@pytest.mark.long
def test_a_command_that_is_refused_leaves_a_finished_run_as_it_was(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "hydra.run.dir=run")

    def files() -> dict[str, float]:
        return {str(path): path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}

    before = files()
    assert "already holds a run" in r2m("train", *QUICK, "seed=9", "hydra.run.dir=run", code=2).stderr
    assert "it has no config.yaml" in r2m("train", "resume=run/policy", code=2).stderr
    assert files() == before


@pytest.mark.long
def test_a_fit_that_diverges_is_not_kept(r2m: Run, tmp_path: Path) -> None:
    failed = r2m("reward", *QUICK, "reward.fit.lr=1e12", "reward.fit.epochs=3", "output=model", code=2)
    assert "not a finite number" in failed.stderr
    assert not (tmp_path / "model").exists()
    r2m("reward", *QUICK, "output=model")


def test_a_failing_judge_ends_the_run_with_a_checkpoint(
    r2m: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    every_other = ("feedback.judge=openai", "feedback.judge_pairs=0.5")  # asked for the first time at step 2
    with served(Refusing) as address:
        judge = (f"judge.url={address}", "judge.timeout=2")
        failed = r2m("train", *QUICK, *every_other, *judge, "hydra.run.dir=run", code=2).stderr
    assert "step 2: asked" in failed
    assert f"continue with resume={tmp_path}/run; judge" in failed
    assert "Traceback" not in failed


@pytest.mark.long
def test_a_kl_target_moves_the_weight_and_never_below_beta(r2m: Run, tmp_path: Path) -> None:
    r2m("train", *QUICK, "train.steps=5", "ppo.lr=1e-2", "ppo.kl_target=0.05", "hydra.run.dir=run")
    steps = rows(tmp_path / "run")[1:]
    beta = 0.05
    for row in steps:
        assert row["beta"] == pytest.approx(beta)
        beta = max(0.05, beta * (1 + 0.5 * min(max(row["kl"] / 0.05 - 1, -0.2), 0.2)))
    assert steps[-1]["beta"] > 0.06


def test_the_guard_ends_a_run_that_has_gone_far_enough(r2m: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    r2m(
        "train",
        *QUICK,
        "train.steps=50",
        "ppo.lr=1e-2",
        "eval.every=10",
        "guard.kl=0.5",
        "feedback.omega=0",
        "hydra.run.dir=run",
    )
    start, *steps = rows(run)
    # With the weight that it comes to, also where w(0) = 1 and where the run ends early.
    (note,) = (line for line in (run / "warnings.log").read_text().splitlines() if "before any RL, at w = 0" in line)
    assert start["eval/pair_accuracy"] != start["eval/pair_accuracy_frozen"]
    assert f": {start['eval/pair_accuracy']:.1%} [" in note, "beside its interval"
    assert len(steps) < 50
    assert [row["kl"] > 0.5 for row in steps] == [False] * (len(steps) - 1) + [True]
    assert "eval/gold" in steps[-1]  # the last state is measured, exported and summed up like that of any run
    assert json.loads((run / "summary.json").read_text())["steps"] == len(steps)
    assert (run / "policy" / "config.json").is_file()
    assert "above guard.kl=0.5" in (run / "warnings.log").read_text()


@pytest.mark.long
def test_judged_pairs_are_kept_in_the_run(r2m: Run, tmp_path: Path) -> None:
    r2m(
        "train", *QUICK, "feedback=r2m_judged", "feedback.judge=labeller", "feedback.judge_pairs=2", "hydra.run.dir=run"
    )
    judged = rows(tmp_path / "run", "judged.jsonl")
    assert [row["step"] for row in judged] == [1, 1, 2, 2]
    assert all(row["chosen"] != row["rejected"] for row in judged)
    assert rows(tmp_path / "run")[-1]["reward_model/labels"] == 4


@pytest.mark.long
def test_a_generic_backbone_is_a_language_model_that_no_label_moved(r2m: Run, tmp_path: Path) -> None:
    tiny = ("reward.size=16x1x2", "reward.fit.parameters=head")
    for name, epochs in (("fresh", 0), ("generic", 1), ("other_labels", 1)):
        noise = 0.3 if name == "other_labels" else 0.0
        r2m(
            "reward",
            *QUICK,
            *tiny,
            f"reward.pretrain_epochs={epochs}",
            f"data.label_noise={noise}",
            f"output={name}",
        )
    fresh, generic, other = (
        load_file(tmp_path / n / "model.safetensors") for n in ("fresh", "generic", "other_labels")
    )
    for name in generic:
        if name.startswith("model."):
            assert torch.equal(generic[name], other[name])
    assert not torch.equal(fresh["model.embed_tokens.weight"], generic["model.embed_tokens.weight"])
    assert not torch.equal(generic["score.weight"], other["score.weight"])
