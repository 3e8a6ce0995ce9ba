"""The policy's responses from vLLM, which lives in the ranks beside the trainer. The only file that imports vllm.

Each rank has an engine of its own, with a copy of the whole policy. Before each rollout it gets the policy's weights; on a GPU
it sleeps in between and holds neither weights nor cache, so that the memory is the trainer's.
"""

import difflib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
import xxhash
from pydantic import ValidationError
from torch import Tensor

from r2m_cli.config.schema import Config, RolloutConfig
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed.engine import Engine
from r2m_cli.errors import UserError
from r2m_cli.models.handover import weights_of
from r2m_cli.models.samplers import Drawn
from r2m_cli.seeds import Stream, draw_seed

# vLLM reads these when it is imported.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process, where the weights are
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would send statistics of use to its makers
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault(
    "VLLM_CPU_OMP_THREADS_BIND", "nobind"
)  # else it binds the trainer's threads to cores of its choice

try:
    import vllm
    from vllm import LLM, EngineArgs, SamplingParams
except ImportError as error:
    raise UserError(
        f"rollout.engine=vllm: the package vllm cannot be imported ({error}); pip install 'r2m[vllm]', or use "
        "rollout.engine=native"
    ) from None

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
CPU_CACHE = 2**30  # bytes of the cache on a CPU, where vLLM would take a share of the host's memory
# What r2m sets from keys of its own, or must set for its samples to be right: vLLM's name -> what to do instead.
OWNED = {
    "model": "use policy.path",
    "dtype": "use engine.dtype",
    "max_model_len": "use rollout.max_prompt_tokens and rollout.max_new_tokens",
    "max_num_seqs": "use rollout.batch_size",
    "logprobs_mode": "r2m needs those of the tempered policy",
    "load_format": "the trainer hands the weights over",
    "distributed_executor_backend": "r2m starts the ranks",
    "tensor_parallel_size": "each rank samples with a whole copy of the policy",
    "pipeline_parallel_size": "each rank samples with a whole copy of the policy",
    "data_parallel_size": "each rank has an engine of its own",
    "enable_sleep_mode": "r2m puts vLLM to sleep while it trains",
    "skip_tokenizer_init": "r2m reads and writes tokens itself",
    "seed": "use seed",
}


def check_settings(rollout: RolloutConfig) -> None:
    """Raises UserError for a key in rollout.vllm that vLLM does not have, or that r2m sets itself."""
    known = [field.name for field in fields(EngineArgs)]
    for name in map(str, rollout.vllm):
        if name in OWNED:
            raise UserError(f"rollout.vllm.{name}: r2m sets it itself; {OWNED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "docs.vllm.ai lists its engine arguments"
            raise UserError(f"rollout.vllm.{name}: vLLM has no such key; {hint}")


class VllmSampler:
    """A `Sampler`. Responses depend on their seed and prompt, and on the numbers of vLLM's kernels."""

    def __init__(self, folder: str, config: Config, device: torch.device) -> None:
        """Start vLLM in this process; it goes to sleep at once. To be called when the ranks have found each other.

        Args:
            folder: the policy's, or its hub name; its configuration is read, its weights are not.

        Raises:
            UserError: vLLM cannot run this model here; or a bad key in rollout.vllm.
        """
        check_settings(config.rollout)
        self._sleeps = device.type == "cuda"
        r, settings = config.rollout, dict[str, Any]()
        if self._sleeps:
            # A share that leaves room for the trainer, which keeps its weights and optimiser state meanwhile.
            settings |= {"enable_sleep_mode": True, "gpu_memory_utilization": 0.3}
        else:
            settings |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE}
            # oneDNN repacks the weights when they are loaded, and the policy's would not fit in any more.
            from vllm import _custom_ops

            _custom_ops._supports_onednn = False
        if r.batch_size is not None:
            settings["max_num_seqs"] = r.batch_size
        if config.engine.kind == "zero":
            settings["distributed_executor_backend"] = "external_launcher"
        settings |= {
            "model": folder, "dtype": DTYPES[config.engine.dtype], "load_format": "dummy", "skip_tokenizer_init": True,
            "max_model_len": r.max_prompt_tokens + r.max_new_tokens, "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm", "seed": 0,
        }  # fmt: skip
        with _undisturbed():
            try:
                self._llm = LLM(**settings | r.vllm)
            except Exception as error:
                raise UserError(
                    f"rollout.engine=vllm: vLLM {vllm.__version__} cannot start with policy.path={folder}: "
                    f"{_reason(error)}; use rollout.engine=native, or change rollout.vllm"
                ) from error
        self._sleep()

    def __call__(
        self, policy: Engine, chat: ChatFormat, prompts: list[list[int]], seeds: list[int], config: RolloutConfig
    ) -> Drawn:
        """Hand the weights over and draw. See `Sampler`.

        Raises:
            UserError: a weight has no place in vLLM's model, or vLLM cannot run it.
        """
        group_size = len(seeds) // len(prompts)
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        parameters = [
            SamplingParams(
                temperature=config.temperature, max_tokens=config.max_new_tokens, seed=_seed(seed, prompt),
                stop_token_ids=sorted(chat.eos_ids), detokenize=False, logprobs=0,
            )
            for seed, prompt in zip(seeds, repeated)
        ]  # fmt: skip
        requests = [{"prompt_token_ids": prompt} for prompt in repeated]
        with _undisturbed():
            self._wake_with(policy)
            try:
                outputs = [request.outputs[0] for request in self._llm.generate(requests, parameters, use_tqdm=False)]
            except Exception as error:
                raise UserError(
                    f"rollout.engine=vllm: vLLM {vllm.__version__} cannot sample from this policy: {_reason(error)}; use "
                    "rollout.engine=native"
                ) from error
            self._sleep()
        tokens = [list(output.token_ids) for output in outputs]
        if config.temperature == 0:  # of a distribution that is one token: nothing to compare with
            return Drawn(tokens, None)
        return Drawn(
            tokens, [[at[t].logprob for t, at in zip(ids, output.logprobs)] for ids, output in zip(tokens, outputs)]
        )

    def _wake_with(self, policy: Engine) -> None:
        if self._sleeps:
            self._llm.wake_up(tags=["weights"])
        self._llm.apply_model(lambda model: _load(model, weights_of(policy)))
        if self._sleeps:
            self._llm.wake_up(tags=["kv_cache"])
        self._llm.reset_prefix_cache()  # it holds keys and values of the weights before

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=2)


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    said = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
    return " ".join(said.split()) or type(error).__name__


def _load(model: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Copy the weights into vLLM's model. Raises UserError if one of its parameters is left as it was."""
    try:
        loaded = model.load_weights(weights)
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"rollout.engine=vllm: {type(model).__name__} of vLLM does not take the policy's weights ({error!r}); use "
            "rollout.engine=native"
        ) from error
    left = sorted({name for name, _ in model.named_parameters()} - set(loaded))
    if left:
        raise UserError(
            f"rollout.engine=vllm: {type(model).__name__} of vLLM has weights that the policy does not hand over, such as "
            f"{left[0]}; use rollout.engine=native"
        )


def _seed(seed: int, prompt: list[int]) -> int:
    """The seed of a request. The prompt is mixed in: vLLM draws partly equal tokens from equal seeds on different prompts."""
    return draw_seed(Stream.REQUEST, seed, xxhash.xxh64_intdigest(repr(prompt).encode()) >> 1)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep what vLLM changes of the process (random state, threads, environment variables), and leave out its warnings of
    packages that only its makers can change."""
    variables, set_threads, threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(gpus), warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
            os.environ.clear()
            os.environ.update(variables)
