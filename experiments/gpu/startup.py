"""Seconds from the command to its first step: `r2m train +experiment=hh_rlhf` with the shape's models on a local disk.

python experiments/gpu/startup.py paper|tiny
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import row
from shapes import SHAPES, folder, keys


def main() -> None:
    """Rows for the start and for the step that follows; the run is ended there."""
    name = sys.argv[1]
    models, shapes = folder(name), SHAPES[name]
    with tempfile.TemporaryDirectory() as base:
        run = Path(base) / "run"
        command = [
            sys.executable, "-m", "r2m_cli.cli.main", "train", "+experiment=hh_rlhf", f"policy.path={models / 'policy'}",
            f"reward.path={models / 'reward'}", f"data.path={models / 'prompts.jsonl'}", "data.holdout=0.1",
            "ppo.prompts_per_step=4", "rollout.max_new_tokens=8", "eval.every=0",
            "checkpoint.every=0", "checkpoint.export=false", "train.steps=1000", *keys(shapes), f"hydra.run.dir={run}",
        ]  # fmt: skip
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
        try:
            step = first_row(run / "metrics.jsonl", process)
            whole = time.perf_counter() - begun
        finally:
            process.kill()  # the kernel ends its ranks with it
            process.wait()
    row("from the command to the first step", whole - step["step_time"], "s")
    row("the first step, 4 prompts x 8 responses of 8 tokens", step["step_time"], "s")


def first_row(metrics: Path, process: "subprocess.Popen[bytes]") -> dict[str, float]:
    """Wait for it. Raises SystemExit if the command ends before."""
    while process.poll() is None:
        line, whole, _ = (metrics.read_text() if metrics.exists() else "").partition("\n")
        if whole:
            return dict(json.loads(line))
        time.sleep(0.05)
    raise SystemExit(f"the command ended with {process.returncode} before its first step")


if __name__ == "__main__":
    main()
