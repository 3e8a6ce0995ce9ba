"""One process of r2m's own training loop that makes an RL step whenever a driver asks for one.

    python experiments/speed/r2m_worker.py chat|summarise|N,P,R,K MODELS [key=value ...]

MODELS is a number of layers of SmolLM2-135M, or a folder with policy/ and reward/. With engine=zero the process is the only
rank.

Answers with the seconds of the step, then those of each stage (rollout, annotate, policy_step, reward_step), then those
that went into code which only runs with feedback, then the peak memory of the process in bytes.
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from models import (
    BETA,
    EPOCHS,
    LR,
    TEMPERATURE,
    Turns,
    Workload,
    folders,
    one_thread,
    prompts,
    workload,
)
from transformers import AutoTokenizer

from r2m_cli.build import build_actors, local_device
from r2m_cli.checkpoints.state import LoopState
from r2m_cli.config.check import typed, validate
from r2m_cli.config.schema import Config
from r2m_cli.data.source import PromptStream, Source, load_source
from r2m_cli.files import jobs  # noqa: F401  registers the names of the run folders
from r2m_cli.loop import Training, train
from r2m_cli.models.actors import Actors
from r2m_cli.models.reward_model import RewardModel
from r2m_cli.models.states import ANNOTATED
from r2m_cli.monitor.observer import Observer, peak_memory
from r2m_cli.stages.pair_learning import Labels

STAGES = ("rollout", "annotate", "policy_step", "reward_step")


@dataclass
class TakingTurns(Observer):
    """Ends each step with an answer, and waits before the next."""

    turns: Turns = field(kw_only=True)
    work: Workload = field(kw_only=True)

    def row(self, step, values, annotated=None):  # type: ignore[no-untyped-def]
        stages = [values.get(f"time/{name}", 0.0) for name in STAGES]
        self.turns.done(*stages, Reading.taken() + stages[-1], peak_memory())
        assert annotated.rollout.prompt_lengths.eq(self.work.prompt_tokens).all()
        assert annotated.rollout.response_lengths.eq(self.work.response_tokens).all()
        self.turns.wait()


class Reading:
    """The seconds that the adapter reads in the annotation; those of the rest of R2M are a stage of their own."""

    seconds = 0.0

    @classmethod
    def timed(cls) -> None:
        """From now on."""
        live = RewardModel.live_scores

        def timed_scores(self, *args, phase, **kwargs):  # type: ignore[no-untyped-def]
            begun = perf_counter()
            score = live(self, *args, phase=phase, **kwargs)
            cls.seconds += (phase == ANNOTATED) * (perf_counter() - begun)
            return score

        RewardModel.live_scores = timed_scores  # type: ignore[method-assign]

    @classmethod
    def taken(cls) -> float:
        """Since the last call."""
        seconds, cls.seconds = cls.seconds, 0.0
        return seconds


def configured(work: Workload, policy: Path, reward: Path, texts: list[str], overrides: list[str]) -> Config:
    """The configuration of one workload, composed and checked as the command does it."""
    data = Path(tempfile.mkdtemp()) / "prompts.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    ConfigStore.instance().store(name="schema", node=Config)
    keys = [
        "feedback=r2m", f"policy.path={policy}", f"reward.path={reward}", "data=file", f"data.path={data}",
        "data.holdout=0.1", "train.steps=1000", "eval.every=0", f"ppo.prompts_per_step={work.prompts}", f"ppo.lr={LR}",
        f"ppo.group_size={work.group_size}", f"ppo.epochs={EPOCHS}", f"ppo.beta={BETA}", "feedback.dim=512",
        f"rollout.max_new_tokens={work.response_tokens}", f"rollout.temperature={TEMPERATURE}", "reward.max_tokens=1024",
        "hydra.run.dir=unused",
    ]  # fmt: skip
    with initialize_config_module("r2m_cli.conf", version_base="1.3"):
        config: Config = typed(compose("train", keys + overrides))
    validate(config)
    return config


def actors_of(work: Workload, models: int | str, overrides: list[str]) -> tuple[Actors, Source, Config]:
    """Models, prompts and configuration of one workload; no token ends a response before its time."""
    policy, reward = folders(models)
    texts = prompts(AutoTokenizer.from_pretrained(policy), work.prompt_tokens, 32)
    config = configured(work, policy, reward, texts, overrides)
    if config.engine.kind == "zero":
        from r2m_cli.distributed.zero import start_process_group

        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29599"}
        os.environ.update(alone)
        start_process_group(config.engine, local_device(config))
    source = load_source(config.data, 1)
    actors = build_actors(config, source)
    assert not actors.policy.module.unshared
    actors.format.eos_ids = set()
    return actors, source, config


def main() -> None:
    turns, work = Turns(), workload(sys.argv[1])
    one_thread()
    Reading.timed()
    actors, source, config = actors_of(work, sys.argv[2], sys.argv[3:])
    turns.wait()
    observer = TakingTurns(None, 0, turns=turns, work=work)
    stream, folder = PromptStream(source.prompts, config.seed), Path(tempfile.mkdtemp())
    train(Training(actors, stream, [], Labels(), config, folder, observer), LoopState())


if __name__ == "__main__":
    main()
