"""Which micro-batch makes TRL's RLOOTrainer fastest: steps of its best configuration with each, taking turns.

    python experiments/speed/micro_batches.py WORKLOAD LAYERS STEPS

The first step of each is a warm-up. CPU seconds are given beside wall seconds: on one thread they say the same on an idle
machine, and more on a busy one.
"""

import os
import sys
from pathlib import Path

from common import Worker
from models import WORKLOADS

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(process: int) -> float:
    """Linux: what a process has used so far, user and system."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> None:
    workload, layers, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    work = WORKLOADS[workload]
    sizes = [size for size in (8, 4, 2) if size <= work.prompts * work.group_size]
    workers = {size: Worker("trl_worker.py", workload, layers, "best", size) for size in sizes}
    try:
        for step in range(steps):
            for size, worker in workers.items():
                before = cpu_seconds(worker.process)
                wall = worker.step()[0]
                used = cpu_seconds(worker.process) - before
                print(f"step {step + 1}, micro-batch {size}: {wall:.1f} s, CPU {used:.1f} s", flush=True)
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
