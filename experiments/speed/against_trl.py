"""r2m with R2M switched on against TRL's RLOOTrainer: seconds per RL step on the same models, prompts and lengths.

    python experiments/speed/against_trl.py [--quick]

The two live in processes of their own and take turns, step by step: A B C A B C, never two at once.
"""

import sys

from common import Results, Worker, spread
from models import LAYERS, WORKLOADS

QUICK_LAYERS = 10


def run(quick: bool) -> Results:
    """Ratios TRL / r2m of the same round, and the seconds behind them. A warm-up step each is not counted."""
    results: Results = {}
    layers, rounds = (QUICK_LAYERS, 1) if quick else (LAYERS, 3)
    for workload in WORKLOADS:
        workers = {
            "r2m": Worker("r2m_worker.py", workload, layers),
            "trl_best": Worker("trl_worker.py", workload, layers, "best"),
            "trl_default": Worker("trl_worker.py", workload, layers, "default"),
        }
        times: dict[str, list[float]] = {name: [] for name in workers}
        try:
            for number in range(rounds + (not quick)):
                for name, worker in workers.items():
                    taken = worker.step()[0]
                    print(
                        f"  {workload} {'warm-up' if number == rounds else number + 1} {name}: {taken:.1f} s",
                        flush=True,
                    )
                    times[name].append(taken)
        finally:
            for worker in workers.values():
                worker.close()
        if not quick:
            times = {name: values[1:] for name, values in times.items()}
        for name, values in times.items():
            results[f"{workload}.seconds_{name}"] = spread(values)
            if name != "r2m":
                results[f"{workload}.ratio_vs_{name}"] = spread([a / b for a, b in zip(values, times["r2m"])])
    return results


if __name__ == "__main__":
    for key, entry in run("--quick" in sys.argv).items():
        print(key, entry)
