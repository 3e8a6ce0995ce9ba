"""Runs one task on its ranks: in this process for engine=single, otherwise in processes started by torchrun."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from r2m_cli.config.schema import Config
from r2m_cli.console import restore_terminal, tell
from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import CONFIG, LAUNCH_LOG, OUTCOME
from r2m_cli.launch.ending import stopped
from r2m_cli.launch.worker import die_with_parent, run_task
from r2m_cli.monitor import stop

# What a task does at the first request to stop; other tasks simply end.
STOPPING = {
    "train": "stopping after this step, with a checkpoint",
    "sft": "stopping after this update, which is kept",
    "reward": "stopping after this update, which is kept",
}
GRACE = 10.0  # seconds between asking the ranks to end and killing them


class RankFailed(Exception):
    """A rank crashed or was killed; the message contains the end of its output."""


def execute(config: Config, run_dir: Path) -> None:
    """Run one task on its ranks, in this process for engine=single, with `config.yaml` written first."""
    run_dir.mkdir(parents=True, exist_ok=True)
    partial = run_dir / ".config.yaml.partial"
    partial.write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))), encoding="utf-8")
    partial.replace(run_dir / CONFIG)
    (run_dir / OUTCOME).unlink(missing_ok=True)
    try:
        start = _run_here if config.engine.kind == "single" else _start_ranks
        stopped_after, signals = start(config, run_dir)
    except SystemExit:
        tell(stopped(config, run_dir))
        raise
    if stopped_after is not None:
        tell(stopped(config, run_dir))
        raise SystemExit(128 + signals.received if signals.received is not None else 0)


def _run_here(config: Config, run_dir: Path) -> tuple[int | None, stop.Signals]:
    with stop.on_signal(run_dir, STOPPING.get(config.task)) as signals:
        try:
            run_task(config, run_dir)
        except stop.Stopped as stopped:
            return stopped.step, signals
    return None, signals


def _start_ranks(config: Config, run_dir: Path) -> tuple[int | None, stop.Signals]:
    c = config.engine
    where = ["--standalone"]
    if c.num_nodes > 1:
        where = [f"--nnodes={c.num_nodes}", f"--node-rank={c.node_rank}"]
        where += ["--rdzv-backend=c10d", f"--rdzv-endpoint={c.rendezvous}", "--rdzv-id=r2m"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={c.num_processes}"]
    command += ["-m", "r2m_cli.launch.worker", str(run_dir)]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC_", "MASTER_", "HYDRA_"))}
    inherited = {k: v for k, v in inherited.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK")}
    # `main` has set OMP_WAIT_POLICY, for this process and for these.
    environment = inherited | {"OMP_NUM_THREADS": str(c.threads)}
    with (run_dir / LAUNCH_LOG).open("a") as log:
        # torchrun gets a session of its own, so that the terminal's Ctrl-C does not reach it. So does each rank. On Linux a
        # process that is killed takes its children with it: see `die_with_parent`.
        ranks = subprocess.Popen(
            command, env=environment, stderr=log, start_new_session=True, preexec_fn=die_with_parent
        )

        def kill() -> None:
            _kill_group(ranks)
            restore_terminal()

        try:
            with stop.on_signal(run_dir, STOPPING.get(config.task), kill) as signals:
                code = ranks.wait()
        finally:
            _kill_group(ranks)
    outcome: dict[str, Any] = {}
    if (run_dir / OUTCOME).is_file():
        outcome = json.loads((run_dir / OUTCOME).read_text())
    match outcome.get("kind"):
        case "error":
            raise UserError(outcome["what"])
        case "crash":
            raise RankFailed(
                f"rank {outcome['rank']} failed:\n{outcome['what']}\nLogs of all ranks: {run_dir}/rank_*.log"
            )
        case "stopped":
            return outcome["what"], signals
    if code != 0:
        restore_terminal()
        tail = "\n".join((run_dir / LAUNCH_LOG).read_text().splitlines()[-25:])
        raise RankFailed(
            f"a rank was killed or exited without an error message:\n{tail}\nLogs of all ranks: {run_dir}/rank_*.log"
        )
    return None, signals


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    for which in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, which)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
