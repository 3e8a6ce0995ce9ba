"""Engines, dtypes, LoRA, PPO's critic and flex against one process on the CPU in fp32: the same four steps of `r2m train`.

    python experiments/gpu/same_numbers.py paper|tiny

The models are tiny for every shape (head size 16, the smallest that flex attention takes on CUDA), so that the CPU can tell
what is right. In fp32 the two must agree; bf16 samples other tokens, so its first reward is shown beside the CPU's and only
has to be near.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rows import attempt, row
from shapes import DEVICE, folder

STEPS = 4
COMPARED = ("reward", "kl", "loss", "grad_norm", "entropy", "reward_model/loss")
FP32, BF16 = 1e-2, 0.5  # largest difference, relative to the CPU's number or to 0.1
ZERO = "engine=zero engine.num_processes=1 engine.stage="
LORA, PPO = "policy.lora_rank=8", "ppo=ppo"
BASES = {"": "plain", LORA: "LoRA", PPO: "PPO's critic"}
VARIANTS = {  # name: (keys of the algorithm, keys of the engine)
    "single": ("", "engine=single"),
    "ZeRO-0": ("", f"{ZERO}0"),
    "ZeRO-1": ("", f"{ZERO}1"),
    "ZeRO-2": ("", f"{ZERO}2"),
    "ZeRO-3": ("", f"{ZERO}3"),
    "ZeRO-2, optimiser offloaded": ("", f"{ZERO}2 engine.offload_optimizer=true"),
    "flex": ("", "engine=single engine.attention=flex"),
    "LoRA, ZeRO-2": (LORA, f"{ZERO}2"),
    "PPO's critic, ZeRO-3": (PPO, f"{ZERO}3"),
    "ZeRO-2, bf16": ("", f"{ZERO}2 engine.dtype=bf16"),
    "ZeRO-3, bf16": ("", f"{ZERO}3 engine.dtype=bf16"),
    "flex, ZeRO-2, bf16": ("", f"{ZERO}2 engine.dtype=bf16 engine.attention=flex"),
    "LoRA, ZeRO-2, bf16": (LORA, f"{ZERO}2 engine.dtype=bf16"),
    "PPO's critic, ZeRO-3, bf16": (PPO, f"{ZERO}3 engine.dtype=bf16"),
}
ON_A_CPU = ("ZeRO-2",)  # enough where there is no GPU to compare

Steps = list[dict[str, float]]


def main() -> None:
    """A row for each variant: the largest difference of a metric."""
    models = folder("tiny")
    chosen = {name: VARIANTS[name] for name in (VARIANTS if DEVICE == "cuda" else ON_A_CPU)}
    with ThreadPoolExecutor(max(1, min(6, (os.cpu_count() or 1) // 2))) as pool:
        algorithms = {algorithm for algorithm, _ in chosen.values()}
        bases = {a: pool.submit(trained, models, f"{a} engine=single engine.device=cpu") for a in algorithms}
        ran = {n: pool.submit(trained, models, f"{a} {e} engine.device={DEVICE}") for n, (a, e) in chosen.items()}
        for name, (algorithm, engine) in chosen.items():
            with attempt(name):
                compare(name, ran[name].result(), bases[algorithm].result(), "bf16" in engine)


def trained(models: Path, overrides: str) -> Steps:
    """The metrics of every step of a run with these configuration keys. Raises RuntimeError with its last words."""
    with tempfile.TemporaryDirectory() as run:
        command = [
            sys.executable, "-m", "r2m_cli.cli.main", "train", f"train.steps={STEPS}", f"policy.path={models / 'policy'}",
            f"reward.path={models / 'reward'}", "data=file", f"data.path={models / 'prompts.jsonl'}", "eval.every=0",
            "ppo.prompts_per_step=4", "ppo.lr=1e-4", "feedback.dim=16", "rollout.max_new_tokens=12", "checkpoint.export=false",
            *overrides.split(), f"hydra.run.dir={run}/run",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise RuntimeError(said[-1] if said else f"exit {done.returncode}")
        return [json.loads(line) for line in Path(f"{run}/run/metrics.jsonl").read_text().splitlines()]


def compare(name: str, ours: Steps, cpu: Steps, half: bool) -> None:
    """Write the row."""
    names, steps = (("reward",), 1) if half else (COMPARED, STEPS)
    pairs = [(o[n], c[n]) for o, c in zip(ours[:steps], cpu) for n in names if n in c]
    worst = max(abs(o - c) / max(abs(c), 0.1) for o, c in pairs)
    finite = all(math.isfinite(value) for step in ours for value in step.values())
    wrong = "not finite" if not finite else "differs" if worst > (BF16 if half else FP32) else ""
    row(f"{name}: largest difference", worst, "relative", failed=wrong)


if __name__ == "__main__":
    main()
