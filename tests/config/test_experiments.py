"""Experiments, methods and sweeps: they compose, and say what the paper says."""

from pathlib import Path

import pytest
from composition import composed, files
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from r2m_cli.cli.sweep import Sweep, close, in_order
from r2m_cli.config.check import keys
from r2m_cli.files.jobs import Job, job_dir, read_job, write_job


@pytest.mark.parametrize("experiment", files("experiment"))
def test_every_experiment_composes(experiment: str) -> None:
    c = composed(f"+experiment={experiment}", *([] if experiment == "english" else ["data.path=somewhere.jsonl"]))
    assert c.data.kind == ("english" if experiment == "english" else "file")


PAPER = {  # policy, reward model, data, (n, K, steps), new tokens, policy lr, reward model lr, Omega: the paper's settings
    "hh_rlhf": ("Qwen/Qwen2.5-3B-Instruct", "Skywork/Skywork-Reward-V2-Llama-3.1-8B", "Anthropic/hh-rlhf",
                (64, 8, 100), 512, 6e-6, 1e-6, 0.7),
    "ultrafeedback_qwen": ("Qwen/Qwen2.5-3B-Instruct", "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
                           "HuggingFaceH4/ultrafeedback_binarized", (64, 8, 100), 512, 6e-6, 1e-6, 0.7),
    "ultrafeedback_llama3": ("meta-llama/Meta-Llama-3-8B-Instruct", "Skywork/Skywork-Reward-V2-Llama-3.1-8B",
                             "HuggingFaceH4/ultrafeedback_binarized", (64, 8, 100), 512, 1e-6, 1e-6, 0.6),
    "tldr_pythia": ("cleanrl/EleutherAI_pythia-2.8b-deduped__sft__tldr",
                    "cleanrl/EleutherAI_pythia-2.8b-deduped__reward__tldr", "trl-lib/tldr",
                    (2048, 4, 122), 50, 3e-6, 5e-7, 0.6),
}  # fmt: skip


@pytest.mark.parametrize("world", files("world"))
def test_every_world_composes(world: str) -> None:
    assert composed(f"+world={world}", "feedback=r2m_safe").data.kind == "gold"


@pytest.mark.parametrize("experiment", PAPER)
def test_the_paper_experiments_have_the_papers_numbers(experiment: str) -> None:
    c = composed(f"+experiment={experiment}")
    policy, reward, data, sizes, tokens, policy_lr, reward_lr, omega = PAPER[experiment]
    assert (c.policy.path, c.reward.path, c.data.path) == (policy, reward, data)
    assert (c.ppo.prompts_per_step, c.ppo.group_size, c.train.steps) == sizes
    assert (c.rollout.max_new_tokens, c.ppo.lr, c.feedback.lr, c.feedback.omega) == (
        tokens,
        policy_lr,
        reward_lr,
        omega,
    )
    assert (c.feedback.kind, c.feedback.alpha, c.feedback.dim) == ("r2m", 0.3, 2048)
    assert (c.ppo.algorithm, c.ppo.epochs, c.rollout.temperature) == ("rloo", 2, 0.7)
    assert (c.engine.kind, c.engine.num_processes, c.engine.dtype) == ("zero", 8, "bf16")
    assert experiment in ("hh_rlhf", "tldr_pythia") or c.data.split == "train_prefs"


@pytest.mark.parametrize("twin", [name for name in files("experiment") if name.endswith("_cpu")])
def test_the_twins_on_a_laptop_keep_what_the_method_is(twin: str) -> None:
    small, large = composed(f"+experiment={twin}", "data.path=x.jsonl"), composed(f"+experiment={twin[:-4]}")
    for key in ("omega", "alpha", "kind", "schedule", "pair"):
        assert getattr(small.feedback, key) == getattr(large.feedback, key), key
    for key in ("algorithm", "epochs", "beta", "ratio", "normalise"):
        assert getattr(small.ppo, key) == getattr(large.ppo, key), key
    assert small.rollout.temperature == large.rollout.temperature
    assert (small.policy.path, small.reward.base, small.engine.kind) == ("smollm2", "smollm2", "single")
    assert twin == "hh_rlhf_cpu" or small.ppo.group_size == large.ppo.group_size


METHODS = {  # algorithm, kind of feedback, alpha: the rows of the paper's tables, and a few of ours
    "rloo": ("rloo", "none", 0.3), "grpo": ("grpo", "none", 0.3), "remax": ("remax", "none", 0.3),
    "reinforce_pp": ("reinforce_pp", "none", 0.3), "ppo": ("ppo", "none", 0.3), "rloo_r2m": ("rloo", "r2m", 0.3),
    "grpo_r2m": ("grpo", "r2m", 0.3), "frozen": ("rloo", "frozen", 0.3), "noise": ("rloo", "noise", 0.3),
    "without_bt": ("rloo", "r2m", 1.0), "without_gre": ("rloo", "r2m", 0.0), "pretrained_rm": ("rloo", "none", 0.3),
    "head_only": ("rloo", "head_only", 0.3), "ensemble": ("rloo", "none", 0.3),
}  # fmt: skip


def test_every_method_is_a_row_that_is_known() -> None:
    assert set(files("method")) == set(METHODS)


@pytest.mark.parametrize("experiment", [None, "hh_rlhf_cpu", "tldr_pythia"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_same_in_every_world(method: str, experiment: str | None) -> None:
    """Whatever the order on the command line, a method's values stand over the experiment's."""
    world = [f"+experiment={experiment}", "data.path=x.jsonl"] if experiment else []
    c = composed(*in_order([f"+method={method}", *world]))
    assert (c.ppo.algorithm, c.feedback.kind, c.feedback.alpha) == METHODS[method]
    if method == "pretrained_rm":
        assert (c.reward.path, c.reward.fit.parameters) == (None, "full")
        assert c.data.pairs == 2 * composed().data.pairs
        assert experiment is None or c.reward.base is not None


@pytest.mark.parametrize("sweep", files("sweep"))
def test_every_sweep_composes_and_names_what_there_is(sweep: str) -> None:
    if sweep == "optuna_lr":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    composed(f"+sweep={sweep}")
    with initialize_config_module("r2m_cli.conf", version_base="1.3"):
        hydra = compose("train", [f"+sweep={sweep}"], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    assert hydra.sweeper.params
    for key, values in hydra.sweeper.params.items():
        assert key == "+method" or key in keys(), key
        if key == "+method":
            assert set(values.split(",")) <= set(METHODS)


def test_appended_groups_come_in_the_order_that_is_meant() -> None:
    typed_ = ["seed=1", "+debug=quick", "+method=rloo", "ppo.lr=1", "+experiment=x,y", "-m"]
    assert in_order(typed_) == ["seed=1", "+experiment=x,y", "+method=rloo", "ppo.lr=1", "+debug=quick", "-m"]


def test_a_sweeps_groups_stand_behind_those_of_the_command_line() -> None:
    config = OmegaConf.create({"task": "train", "hydra": {
        "sweep": {"dir": "nowhere"},
        "sweeper": {"params": {"+method": "rloo,grpo", "ppo.lr": "1,2"}},
        "launcher": {},
        "overrides": {"task": ["+experiment=hh_rlhf_cpu", "seed=0,1"], "hydra": []},
    }})  # fmt: skip
    OmegaConf.set_readonly(config, True)
    OmegaConf.set_struct(config, True)
    Sweep().on_multirun_start(config)
    assert config.hydra.overrides.task == ["+experiment=hh_rlhf_cpu", "seed=0,1", "+method=rloo,grpo"]
    assert config.hydra.sweeper.params == {"ppo.lr": "1,2"}
    assert config.hydra.overrides.hydra == ["hydra.job.config.override_dirname.exclude_keys=[sweep,experiment]"]
    close()


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["+method=rloo", "seed=1", "+debug=quick"], "3_method=rloo,seed=1"),
        (["+debug=quick"], "3"),
        (["++ppo.beta=0.1", "policy.path=/a/b/"], "3_ppo.beta=0.1,policy.path=b"),
        (["logger.kinds=[a,'b c']"], "3_logger.kinds=[a,_b c_]"),
        (["data.path='O\\'Brien.jsonl'"], "3_data.path=O_Brien.jsonl"),
    ],
)
def test_the_folders_of_a_sweeps_jobs(overrides: list[str], folder: str, tmp_path: Path) -> None:
    assert job_dir(3, str(tmp_path), overrides, ["debug", "sweep"]) == folder


def test_the_same_overrides_get_their_folder_again_and_others_never_do(tmp_path: Path) -> None:
    long = "ppo.beta=" + "é" * 200
    folders: dict[str, list[str]] = {}
    for number, overrides in enumerate(
        ([long, "seed=0"], [long, "seed=1"], ["reward.path=rm/v1"], ["reward.path=rm_v1"])
    ):
        folders[job_dir(number, str(tmp_path), overrides, [])] = overrides
    assert len(folders) == 4
    assert max(len(name.encode()) for name in folders) < 255
    for number, (name, overrides) in enumerate(folders.items()):
        (tmp_path / name).mkdir()
        write_job(tmp_path / name, Job(number, tuple(overrides)))
    for name, overrides in folders.items():
        assert job_dir(9, str(tmp_path), overrides[::-1], []) == name
    assert job_dir(0, str(tmp_path), [long, "seed=2"], []).startswith("0_ppo.beta=")


def test_an_older_sweeps_number_is_still_read(tmp_path: Path) -> None:
    (tmp_path / ".job").write_text("7\n")
    assert read_job(tmp_path) == Job(7, None)
    (tmp_path / ".job").write_text("torn {")
    assert read_job(tmp_path) is None
