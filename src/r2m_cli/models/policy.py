"""The policy: a causal language model that returns log-probabilities and last-layer hidden states in one forward."""

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from r2m_cli.console import say
from r2m_cli.distributed.shards import layer_by_layer
from r2m_cli.errors import UserError
from r2m_cli.models.body import body, checkpointed_layers, checkpointing
from r2m_cli.models.decoding import Decoder, SharedPrefill, agrees, choose
from r2m_cli.models.graphs import CudaGraphs
from r2m_cli.models.sequences import Sequences
from r2m_cli.models.sharing import why_not
from r2m_cli.models.states import Features, States
from r2m_cli.models.static_decoding import StaticDecoder
from r2m_cli.models.static_sampling import KEPT, StaticSampler

LOGITS = 2**26  # numbers of one chunk of logits: 256 MB in fp32


class PolicyOutput(NamedTuple):
    """The output of one teacher-forced forward. R is the longest response, T the number of states (see `Layout`).

    A tuple, because DeepSpeed looks for tensors in tuples but not in dataclasses.
    """

    logp: Tensor  # [B, R] log-probability of each response token under the tempered policy, 0 on padding
    entropy: Tensor | None  # [B, R] of the distribution each response token was drawn from, nats
    states: States  # the policy feedback h, or other `Features` of the policy; detached


class Policy(nn.Module):
    """Any causal LM of transformers. The LM head runs only on response positions and in chunks: never [B, S, V].

    A prompt is read once for all its responses, unless the architecture cannot do that; `unshared` is then the reason.
    """

    lm: Any  # transformers' PreTrainedModel

    def __init__(
        self,
        lm: nn.Module,
        gradient_checkpointing: bool = False,
        attention: str = "sdpa",
        features: str = "states",
        like: "Policy | None" = None,
    ):
        """
        Args:
            like: a policy of the same model, on the same device, whose attention this one takes over without trying it again.
        """  # fmt: skip
        super().__init__()
        self.lm = lm.eval()
        self.features = Features(lm, features)
        if like is None:
            self.unshared = why_not(self.lm, lambda layout: layout.run(body(self.lm)), attention)
        else:
            self.unshared = like.unshared
            self.lm.set_attn_implementation(like.lm.config._attn_implementation)
        self._checkpointed = checkpointed_layers(self.lm) if gradient_checkpointing else []

    def forward(self, sequences: Sequences, temperature: float, with_entropy: bool = False) -> PolicyOutput:
        """Score responses; the logits are divided by `temperature`, as they were in sampling."""
        layout = sequences.layout(shared=not self.unshared)
        with checkpointing(self._checkpointed):
            hidden = layout.run(body(self.lm))
        row, position, targets = sequences.response_tokens
        logp, entropy = self._scores(hidden[layout.at(row, position)], targets, temperature, with_entropy)
        return PolicyOutput(
            logp=sequences.table(logp),
            entropy=sequences.table(entropy) if with_entropy else None,
            states=States(self.features(hidden), layout.visible(sequences.lengths)),
        )

    @cached_property
    def decoder(self) -> type[Decoder]:
        """How `sample` reads with this model: the fastest decoder with the same numbers as training, chosen by trials.

        The first call must come before an engine has the model.

        Raises:
            UserError: no decoder does.
        """
        chosen = choose(self.lm)
        if chosen is None:
            raise UserError(
                f"policy.path: a {self.lm.config.model_type} model gives other states for a text in a batch than for the text "
                "alone, or attends to later tokens; use another architecture"
            )
        return chosen

    @cached_property
    def static_sampler(self) -> StaticSampler | None:
        """What samples without asking the host at every token; None on a CPU, and for a model that cannot be read so.

        Found by trying, at the first sample: on the device and in the dtype that are used.
        """
        device = next(self.parameters()).device
        if device.type != "cuda" or self.decoder is not SharedPrefill:
            return None
        if not agrees(StaticDecoder, self.lm):
            say(f"note: a {self.lm.config.model_type} model cannot decode at fixed shapes: it samples more slowly")
            return None
        return StaticSampler(CudaGraphs, KEPT * torch.cuda.get_device_properties(device).total_memory)

    def logits(self, hidden: Tensor) -> Tensor:
        """The LM head, and the scaling or capping that some architectures apply to its output. [..., D_p] -> [..., V]."""
        logits = self.lm.get_output_embeddings()(hidden)
        config = self.lm.config.get_text_config()
        if config.model_type.startswith("granite"):
            logits = logits / config.logits_scaling
        elif config.model_type.startswith("cohere"):
            logits = logits * config.logit_scale
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        return cap * torch.tanh(logits / cap) if cap else logits

    def _scores(self, states: Tensor, targets: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """`_score` in chunks. If there are several, their logits are not kept: the backward pass computes them again."""
        size = max(1, LOGITS // int(self.lm.config.get_text_config().vocab_size))
        if len(targets) <= size:
            return self._score(states, targets, temperature, with_entropy)
        chunks = [
            checkpoint(self._score, *chunk, temperature, with_entropy, use_reentrant=False)
            for chunk in zip(states.split(size), targets.split(size))
        ]
        logp, entropy = (torch.cat(column) for column in zip(*chunks))
        return logp, entropy

    def _score(self, states: Tensor, targets: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor]:
        """Log-probability of each target after its state, and entropy (empty if not asked for). [N, D_p], [N] -> [N], [N]."""
        log_p = self.logits(states).float().div_(temperature).log_softmax(dim=1)
        logp = log_p.gather(1, targets[:, None]).squeeze(1)
        return logp, -(log_p.exp() * log_p).sum(dim=1) if with_entropy else logp.new_zeros(0)

    @torch.no_grad()
    def agrees_with_its_model(self) -> bool:
        """Whether `logits` of the last-layer states equal the model's own: false for an architecture that scales them in an
        unknown way. Call it before an engine has the model."""
        tokens = torch.tensor([[1, 2, 3]], device=next(self.parameters()).device)
        with layer_by_layer(self.lm):
            states = body(self.lm)(input_ids=tokens, use_cache=False).last_hidden_state
            own = self.lm(input_ids=tokens, use_cache=False).logits
            given = self.logits(states)
        return torch.allclose(given.float(), own.float(), rtol=1e-2, atol=1e-2)
