"""The policy: a causal language model that gives log-probabilities and last-layer hidden states in one forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from r2m_cli.maths.masking import length_mask


class PolicyOutput(NamedTuple):
    """What one teacher-forced forward gives. R is the longest response, S the longest sequence of the batch.

    A tuple, since DeepSpeed looks for tensors in tuples but not in dataclasses.
    """

    logp: Tensor  # [B, R] log-probability of each response token under the tempered policy, 0 on padding
    entropy: Tensor | None  # [B, R] of the distribution each response token was drawn from, nats
    hidden: Tensor  # [B, S-1, D_p] last-layer states, detached: the policy feedback h
    hidden_mask: Tensor  # [B, S-1] true on real positions


class Policy(nn.Module):
    """Any causal LM of transformers. The LM head runs on response positions only, never on [B, S, V].

    The forward leaves out each sequence's last token, whose state predicts nothing: hence the S-1 states of the paper.
    """

    lm: Any  # transformers' PreTrainedModel

    def __init__(self, lm: nn.Module, gradient_checkpointing: bool = False):
        super().__init__()
        self.lm = lm.eval()
        self._checkpointed = checkpointed_layers(self.lm) if gradient_checkpointing else []

    @property
    def hidden_size(self) -> int:
        """D_p."""
        return int(self.lm.config.get_text_config().hidden_size)

    def forward(
        self,
        tokens: Tensor,
        prompt_lengths: Tensor,
        response_lengths: Tensor,
        temperature: float,
        with_entropy: bool = False,
    ) -> PolicyOutput:
        """Score responses.

        Args:
            tokens: [B, S] prompt, response and padding on the right.
            prompt_lengths, response_lengths: [B], tokens; both at least 1.
            temperature: the logits are divided by it, as they were in sampling.
        """  # fmt: skip
        inputs = tokens[:, :-1]
        mask = length_mask(prompt_lengths + response_lengths - 1, inputs.shape[1])
        with checkpointing(self._checkpointed):
            output = self.lm.base_model(input_ids=inputs, attention_mask=mask.long(), use_cache=False)
        hidden = output.last_hidden_state

        # State j predicts token j + 1, so the response's states begin at the prompt's last token.
        width = int(response_lengths.max())
        response_mask = length_mask(response_lengths, width)
        row, column = response_mask.nonzero(as_tuple=True)
        position = prompt_lengths[row] - 1 + column
        logits = self.logits(hidden[row, position]).float() / temperature  # [all response tokens, V]
        chosen = logits.gather(1, tokens[row, position + 1][:, None]).squeeze(1) - logits.logsumexp(dim=1)
        logp = chosen.new_zeros(response_mask.shape).index_put((row, column), chosen)

        entropy = None
        if with_entropy:
            flat = torch.distributions.Categorical(logits=logits, validate_args=False).entropy()
            entropy = flat.new_zeros(response_mask.shape).index_put((row, column), flat)
        return PolicyOutput(logp, entropy, hidden.detach(), mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """The LM head with what some architectures do to its output. [..., D_p] -> [..., V]."""
        logits = self.lm.get_output_embeddings()(hidden)
        config = self.lm.config.get_text_config()
        if config.model_type.startswith("granite"):
            logits = logits / config.logits_scaling
        elif config.model_type.startswith("cohere"):
            logits = logits * config.logit_scale
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma
        return cap * torch.tanh(logits / cap) if cap else logits

    @torch.no_grad()
    def agrees_with_its_model(self) -> bool:
        """Whether `logits` of the last-layer states are the model's own: false for an architecture that scales them in
        a way not known here. Call it before the parameters are sharded."""
        tokens = torch.tensor([[1, 2, 3]], device=next(self.parameters()).device)
        states = self.lm.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        own = self.lm(input_ids=tokens, use_cache=False).logits
        return torch.allclose(self.logits(states).float(), own.float(), rtol=1e-2, atol=1e-2)


def checkpointed_layers(lm: Any) -> list[nn.Module]:
    """Turn on gradient checkpointing in a transformers model; gives the layers that do it."""
    lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return [m for m in lm.modules() if getattr(m, "gradient_checkpointing", False)]


@contextmanager
def checkpointing(layers: list[nn.Module]) -> Iterator[None]:
    """transformers checkpoints a layer in training mode only, and then drops its cache: so set the mode of these layers
    alone (no dropout inside them wakes up: the first ratio must be 1), and only while a gradient is wanted."""
    for layer in layers:
        layer.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
