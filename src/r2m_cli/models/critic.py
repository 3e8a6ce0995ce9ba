"""The critic of PPO: a language model's body with a value head, trained by its own engine."""

from typing import Any

from torch import Tensor, nn

from r2m_cli.models.body import body, checkpointed_layers, checkpointing
from r2m_cli.models.sequences import Sequences
from r2m_cli.models.sharing import why_not


class Critic(nn.Module):
    """V(prefix): the expected remaining reward when the policy continues from this prefix, in units of reward."""

    def __init__(self, lm: Any, gradient_checkpointing: bool = False, attention: str = "sdpa"):
        super().__init__()
        self.body = body(lm).eval()  # the LM head is not needed; no dropout: first values equal the old ones
        self.unshared = why_not(self.body, lambda layout: layout.run(self.body), attention)
        self._checkpointed = checkpointed_layers(self.body) if gradient_checkpointing else []
        # Start at zero: the untrained critic predicts 0, and GAE starts from the plain rewards.
        self.value_head = nn.Linear(lm.config.get_text_config().hidden_size, 1, dtype=lm.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, sequences: Sequences) -> Tensor:
        """Values before each response token. [B, R] in fp32, 0 on padding."""
        layout = sequences.layout(shared=not self.unshared)
        with checkpointing(self._checkpointed):
            hidden = layout.run(self.body)
        row, position, _ = sequences.response_tokens
        return sequences.table(self.value_head(hidden[layout.at(row, position)]).squeeze(1).float())
