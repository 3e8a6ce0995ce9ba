"""One process of TRL's RLOOTrainer that makes an RL step whenever `against_trl.py` asks for one.

python experiments/speed/trl_worker.py WORKLOAD MODELS best|default [micro-batch]

WORKLOAD and MODELS as in `r2m_worker.py`. On a GPU it works in bf16. Answers with the seconds of the step and the peak memory
of the process in bytes.
"""

import sys
import tempfile

import torch
from datasets import Dataset
from models import BETA, EPOCHS, LR, TEMPERATURE, Turns, folders, one_thread, prompts, workload
from transformers import AutoTokenizer, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from r2m_cli.monitor.observer import peak_memory


class Boundary(TrainerCallback):
    """An RL step is sampling, scoring and all its optimiser updates; TRL counts the updates."""

    def __init__(self, turns: Turns):
        self.turns = turns

    def on_train_begin(self, *_, **__):  # type: ignore[no-untyped-def]
        self.turns.wait()

    def on_step_end(self, args, state, control, **__):  # type: ignore[no-untyped-def]
        if state.global_step % EPOCHS == 0:
            self.turns.done(peak_memory())
            self.turns.wait()


class Checked(RLOOTrainer):
    """Refuses a step whose lengths are not the forced ones."""

    lengths: tuple[int, int]

    def _generate_and_score_completions(self, inputs):  # type: ignore[no-untyped-def]
        out = super()._generate_and_score_completions(inputs)
        assert out["prompt_mask"].sum(1).eq(self.lengths[0]).all()
        assert out["completion_mask"].sum(1).eq(self.lengths[1]).all()
        return out


def main() -> None:
    turns, work, kind = Turns(), workload(sys.argv[1]), sys.argv[3]
    one_thread()
    folder, reward = folders(sys.argv[2])
    cuda = torch.cuda.is_available()
    dtype = "bfloat16" if cuda else "float32"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [[{"role": "user", "content": text}] for text in prompts(tokenizer, work.prompt_tokens, 32)]
    sequences = work.prompts * work.group_size
    # 8 is TRL's default; a third argument tries another.
    micro = int(sys.argv[4]) if len(sys.argv) > 4 else min(8, sequences)
    options = {"gradient_checkpointing": False, "optim": "adamw_torch_fused"} if kind == "best" else {}
    config = RLOOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=not cuda, bf16=cuda, report_to=[], save_strategy="no", logging_steps=10**6,
        per_device_train_batch_size=micro, gradient_accumulation_steps=sequences // micro, max_steps=10**6,
        num_generations=work.group_size, num_iterations=EPOCHS, max_completion_length=work.response_tokens, beta=BETA,
        temperature=TEMPERATURE, learning_rate=LR, disable_tqdm=True, model_init_kwargs={"dtype": dtype},
        generation_kwargs={"min_new_tokens": work.response_tokens}, **options,
    )  # fmt: skip
    assert config.gradient_checkpointing == (kind != "best")
    Checked.lengths = (work.prompt_tokens, work.response_tokens)
    trainer = Checked(
        str(folder), [str(reward)], args=config, train_dataset=Dataset.from_dict({"prompt": rows}),
        processing_class=tokenizer, callbacks=[Boundary(turns)],
    )  # fmt: skip
    every = (trainer.model, trainer.ref_model, *trainer.reward_funcs)
    assert {p.dtype for model in every for p in model.parameters()} == {getattr(torch, dtype)}
    trainer.train()


if __name__ == "__main__":
    main()
