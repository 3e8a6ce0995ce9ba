"""Seconds, stages and peak memory of an RL step: with R2M, without it, or in TRL's RLOOTrainer.

python experiments/gpu/steps.py paper|tiny r2m|vanilla|trl
"""

import sys
from dataclasses import astuple
from importlib.util import find_spec
from statistics import median

import torch
from common import Worker
from flops import forward_work, matmul_rate
from models import EPOCHS
from rows import row
from shapes import DEVICE, SHAPES, Shapes, dtype, folder, keys
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

STAGES = ("rollout", "annotate", "policy_step", "reward_step")  # as r2m_worker.py answers
STEPS = 2  # after the first, which warms up
FEEDBACK = {"r2m": "r2m", "vanilla": "none"}


def main() -> None:
    """Rows of the first step, and of the medians of the next."""
    name, tool = sys.argv[1:]
    shapes, models = SHAPES[name], folder(name)
    n, prompt, response, group = astuple(shapes.work)
    if tool == "trl" and find_spec("trl") is None:
        raise SystemExit("trl is not installed")
    work = f"{n},{prompt},{response},{group}"
    if tool == "trl":
        worker = Worker("trl_worker.py", work, models, "default", shapes.micro_batch)
    else:
        worker = Worker("r2m_worker.py", work, models, f"feedback={FEEDBACK[tool]}", *keys(shapes))
    try:
        row("first step", worker.step()[0], "s")
        answers = [worker.step() for _ in range(STEPS)]
    finally:
        worker.close()
    seconds, *rest = (median(column) for column in zip(*answers))
    row("step", seconds, "s")
    row("peak memory", rest[-1] / 2**30, "GiB")
    if tool == "trl":
        return
    rate = matmul_rate(shapes.product, shapes.seconds, device=DEVICE, dtype=dtype(shapes))
    counted = operations(shapes, name)
    for stage, taken in zip(STAGES, rest):
        row(stage, taken, "s")
        if stage in counted and taken:
            row(f"{stage}, share of the matrix rate", counted[stage] / taken / rate)


def operations(shapes: Shapes, name: str) -> dict[str, float]:
    """Of the stages that matrix products rule: the annotation's three models, and the policy's epochs."""
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder(name) / "policy"))
        reward = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder(name) / "reward"))
    forward = forward_work(policy, shapes.work, last_tokens=False, head=True)
    scored = forward_work(reward, shapes.work, last_tokens=True, head=False)
    return {"annotate": 2 * forward + scored, "policy_step": EPOCHS * 3 * forward}


if __name__ == "__main__":
    main()
