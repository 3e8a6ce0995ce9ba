"""How the time of an RL step grows when one thing is doubled: P, R, K, n, and the number of ranks.

python experiments/speed/scaling.py [--quick]
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Results, Worker, spread
from models import policy_folder, prompts, reward_folder
from transformers import AutoTokenizer

SHALLOW = 4
BASE = {"n": 2, "P": 128, "R": 32, "K": 4}
QUICK_BASE = BASE | {"n": 1, "P": 64, "R": 16}


def run(quick: bool) -> Results:
    """`scaling.<what>x2`: seconds of a step over those of the base, of the same round."""
    base = QUICK_BASE if quick else BASE
    shapes = {"base": base} | {f"{name}x2": base | {name: 2 * size} for name, size in base.items()}
    workers = {
        name: Worker("r2m_worker.py", ",".join(str(shape[key]) for key in ("n", "P", "R", "K")), SHALLOW)
        for name, shape in shapes.items()
    }
    times: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for _ in range(2 if quick else 6):
            for name, worker in workers.items():
                times[name].append(worker.step()[0])
    finally:
        for worker in workers.values():
            worker.close()
    once = times["base"][1:]  # the first is a warm-up
    results = {"scaling.base_seconds": spread(once)}
    for name, values in times.items():
        if name != "base":
            results[f"scaling.{name}"] = spread([a / b for a, b in zip(values[1:], once)])
    results |= ranks(base, 2 if quick else 6)
    for name, entry in results.items():
        print(f"  {name}: {entry['median']}", flush=True)
    return results


def ranks(base: dict[str, int], steps: int) -> Results:
    """Seconds of a step of two ZeRO-2 ranks over those of one, on the same prompts: 0.5 would be ideal with two free cores."""
    times = {count: _launched(count, base, steps) for count in (1, 2)}
    return {"scaling.two_ranks_over_one": spread([two / one for one, two in zip(times[1], times[2])])}


def _launched(count: int, base: dict[str, int], steps: int) -> list[float]:
    """Step times of `r2m train` on so many ranks, without the first."""
    folder = policy_folder(SHALLOW)
    run_dir = Path(tempfile.mkdtemp())
    data = run_dir / "prompts.jsonl"
    texts = prompts(AutoTokenizer.from_pretrained(folder), base["P"], 32)
    data.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    command = [
        str(Path(sys.executable).parent / "r2m"), "train", "engine=zero", f"engine.num_processes={count}", "feedback=r2m",
        f"policy.path={folder}", f"reward.path={reward_folder(folder)}", "data=file", f"data.path={data}",
        "data.holdout=0.1", f"train.steps={steps}", "eval.every=0", f"ppo.prompts_per_step={base['n'] * 2}", "ppo.lr=1e-6",
        f"ppo.group_size={base['K']}", f"rollout.max_new_tokens={base['R']}", "feedback.dim=512", "ppo.epochs=2",
        "checkpoint.export=false", "rollout.max_prompt_tokens=512", f"hydra.run.dir={run_dir / 'run'}",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"scaling: {done.stdout[-500:]}{done.stderr[-500:]}")
    rows = [json.loads(line) for line in (run_dir / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["step_time"] for row in rows if row["step"] > 1]


if __name__ == "__main__":
    run("--quick" in sys.argv)
