"""r2m with R2M switched on against TRL's RLOOTrainer: seconds per RL step on the same models, prompts and lengths.

    python experiments/speed/against_trl.py [--quick]

The two live in processes of their own and take turns, step by step: A B C A B C, never two at once.
"""

import sys

from common import Results, Worker, spread
from models import LAYERS

QUICK_LAYERS = 2
ROUNDS = {"chat": 3, "summarise": 2}
TRL = ("best", "default")


def run(quick: bool) -> Results:
    """Ratios TRL / r2m of the same round, and the seconds behind them. The first step of each is a warm-up.

    The quick run makes a single step of each and counts it (the first ones differed from the next by less than a tenth),
    and leaves out *summarise* in TRL's default configuration, whose steps are the longest of all.
    """
    results: Results = {}
    layers = QUICK_LAYERS if quick else LAYERS
    for workload, rounds in ROUNDS.items():
        kinds = TRL[:1] if quick and workload == "summarise" else TRL
        workers = {"r2m": Worker("r2m_worker.py", workload, layers)}
        workers |= {f"trl_{kind}": Worker("trl_worker.py", workload, layers, kind) for kind in kinds}
        times: dict[str, list[float]] = {name: [] for name in workers}
        try:
            for number in [1] if quick else range(1 + rounds):
                for name, worker in workers.items():
                    taken = worker.step()[0]
                    print(
                        f"  {workload} {f'round {number}' if number else 'warm-up'} {name}: {taken:.1f} s", flush=True
                    )
                    if number:
                        times[name].append(taken)
        finally:
            for worker in workers.values():
                worker.close()
        for name, values in times.items():
            results[f"{workload}.seconds_{name}"] = spread(values)
            if name != "r2m":
                results[f"{workload}.ratio_vs_{name}"] = spread([a / b for a, b in zip(values, times["r2m"])])
    return results


if __name__ == "__main__":
    for key, entry in run("--quick" in sys.argv).items():
        print(key, entry)
