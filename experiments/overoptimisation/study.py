"""The over-optimisation study: its runs, through `r2m train -m`, then results.csv.

    python experiments/overoptimisation/study.py quick|choose|final [world=A,B] [seed=0,1,2] [method=A,B] [jobs=2] [key=value ...]

Started again it goes on where it stopped: runs that are done are kept, one that was broken off is resumed. Everything lies
in outputs/study/PHASE. Further key=value go to every run, so that the study can be made in other worlds and with other numbers.
"""

import json
import subprocess
import sys
from pathlib import Path

import results

HERE = Path(__file__).parent
WORLDS = {  # labelled pairs of the reward model
    "one_class": 3000, "label_bias": 3000, "label_noise": 3000, "strong_frozen": 4000, "strong_frozen_few": 1000,
    "strong_tuned": 4000, "strong_tuned_few": 1000,
}  # fmt: skip
BETAS = "0.05,0.1,0.2,0.4"
FRONTIER = 0.05  # every method is also run with this weight, which lets the KL pass through 4, 6 and 8 nats
BUDGET = 0.15  # real labels in a run, as a share of the reward model's pairs
STEPS = 100


def methods(world: str) -> dict[str, list[str]]:
    """Name -> overrides. All use RLOO; `rloo` is vanilla."""
    pairs = WORLDS[world]
    labels = BUDGET * pairs
    return {
        "rloo": ["+method=rloo"],
        "rloo_r2m": ["+method=rloo_r2m"],
        "ensemble": ["+method=ensemble"],
        "r2m_safe": ["+method=rloo", "feedback=r2m_safe"],
        "r2m_judged": [
            "+method=rloo",
            "feedback=r2m_judged",
            "feedback.judge=labeller",
            f"feedback.judge_pairs={labels / STEPS:g}",
        ],
        "offline_labels": ["+method=rloo", f"data.pairs={round(pairs + labels)}"],
    }


# phase -> worlds, methods, seeds, further overrides. Seeds of `final` were never looked at before.
PHASES: dict[str, tuple[list[str], list[str], str, list[str]]] = {
    "quick": (["one_class", "strong_frozen"], ["rloo", "r2m_safe"], "0,1", ["train.steps=60"]),
    "choose": (list(WORLDS), ["rloo", "rloo_r2m", "r2m_safe", "r2m_judged"], "0,1,2", []),
    "final": (list(WORLDS), ["rloo", "rloo_r2m", "ensemble", "r2m_safe", "r2m_judged", "offline_labels"],
              "10,11,12,13,14,15,16,17,18,19", []),
}  # fmt: skip


def main() -> None:
    given = dict(text.split("=", 1) for text in sys.argv[2:])
    if len(sys.argv) < 2 or sys.argv[1] not in PHASES:
        raise SystemExit(f"which part of the study? {'|'.join(PHASES)}; see {HERE / 'README.md'}")
    phase = sys.argv[1]
    worlds, names, seeds, further = PHASES[phase]
    worlds = given.pop("world", ",".join(worlds)).split(",")
    names = given.pop("method", ",".join(names)).split(",")
    seeds, jobs = given.pop("seed", seeds), given.pop("jobs", "2")
    further = further + [f"{key}={value}" for key, value in given.items()]
    out = Path("outputs/study") / phase
    for world in worlds:
        for name in names:
            betas = ",".join(sorted({str(FRONTIER), *betas_of(phase, world, name).split(",")}))
            sweep(
                out / world / name,
                [f"+world={world}", *methods(world)[name], f"ppo.beta={betas}", *further],
                seeds,
                jobs,
            )
        results.write(out)
    print(f"{out / 'results.csv'}")


def betas_of(phase: str, world: str, method: str) -> str:
    """The weights to run: the grid while choosing, afterwards the one that chosen.json says was best."""
    chosen = HERE / "chosen.json"
    if phase != "final":
        return BETAS if phase == "choose" else "0.2"
    if not chosen.is_file():
        raise SystemExit(
            f"{chosen}: missing; write what `choose` found best, {{world: {{method: beta}}}}, before the comparison"
        )
    best = json.loads(chosen.read_text())[world]
    return str(best.get(method, best["rloo"]))


def sweep(folder: Path, overrides: list[str], seeds: str, jobs: str) -> None:
    """One multirun, `jobs` runs at a time."""
    command = [
        str(Path(sys.executable).parent / "r2m"), "train", "-m", *overrides, f"seed={seeds}", "data.seed=${seed}",
        f"hydra.sweep.dir={folder}", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}", "checkpoint.export=false",
        "logger.samples_every=50",
    ]  # fmt: skip
    print(" ".join(command), flush=True)
    subprocess.run(command, check=False)  # what failed is named by the sweep and missing in results.csv


if __name__ == "__main__":
    main()
