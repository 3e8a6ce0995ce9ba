"""One rank: join the others, run the task, record how it ended.

The launcher starts `python -m r2m_cli.launch.worker RUN_DIR` once per rank; engine=single calls `run_task` in its own process.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import CONFIG, OUTCOME, rank_log
from r2m_cli.monitor.stop import Stopped
from r2m_cli.monitor.streams import outlived

if TYPE_CHECKING:
    from r2m_cli.config.schema import Config


def run_task(config: "Config", run_dir: Path) -> None:
    """Run the configured task in this process."""
    import torch

    torch.set_num_threads(config.engine.threads)
    _name_accelerator()
    if config.task == "train":
        from r2m_cli.tasks.train import run
    elif config.task == "sft":
        from r2m_cli.tasks.sft import run
    elif config.task == "reward":
        from r2m_cli.tasks.reward import run
    elif config.task == "evaluate":
        from r2m_cli.tasks.evaluate import run
    else:
        from r2m_cli.tasks.analyze import run
    run(config, run_dir)


def main() -> None:
    """A rank's process. Its standard error, and on ranks other than 0 everything it prints, goes to `rank_R.log`."""
    die_with_parent()
    run_dir = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    log = rank_log(run_dir, rank).open("a")
    os.dup2(log.fileno(), sys.stderr.fileno())
    if rank:
        os.dup2(log.fileno(), sys.stdout.fileno())
    code = 1
    try:
        with outlived():
            _join_and_run(run_dir)
        code = 0
    except UserError as error:
        _outcome(run_dir, rank, "error", str(error))
        code = 2
    except Stopped as stopped:
        if rank == 0:
            _outcome(run_dir, rank, "stopped", stopped.step)
        code = 0
    except BaseException:
        text = traceback.format_exc()
        print(text, file=sys.stderr)
        _outcome(run_dir, rank, "crash", text)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # other ranks may be gone: a clean shutdown of the process group would wait for them


def _join_and_run(run_dir: Path) -> None:
    _name_accelerator()
    import torch.distributed as dist
    from omegaconf import OmegaConf

    from r2m_cli.config.check import typed
    from r2m_cli.distributed.engine import resolve_device
    from r2m_cli.distributed.zero import local_rank, start_process_group

    config = typed(OmegaConf.load(run_dir / CONFIG))  # type: ignore[arg-type]
    start_process_group(config.engine, resolve_device(config.engine.device, local_rank()))
    run_task(config, run_dir)
    dist.barrier()


def die_with_parent() -> None:
    """Linux: let the kernel kill this process when its parent ends for any reason, so that no rank keeps training as an orphan."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _name_accelerator() -> None:
    """Set DS_ACCELERATOR. Otherwise DeepSpeed, which transformers imports if installed, prints that it found no accelerator."""
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def _outcome(run_dir: Path, rank: int, kind: str, what: object) -> None:
    target = run_dir / OUTCOME
    # Only the first rank to fail is recorded; the others fail because it is gone.
    try:
        with target.open("x") as file:
            json.dump({"kind": kind, "rank": rank, "what": what}, file)
    except FileExistsError:
        pass


if __name__ == "__main__":
    main()
