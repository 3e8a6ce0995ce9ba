"""The critic of PPO: a language model's body with a value head, trained by an engine of its own."""

from typing import Any

from torch import Tensor, nn

from r2m_cli.maths.masking import length_mask
from r2m_cli.models.policy import checkpointed_layers, checkpointing


class Critic(nn.Module):
    """V(prefix): the expected rest of the reward when the policy goes on from this prefix, in units of reward."""

    def __init__(self, lm: Any, gradient_checkpointing: bool = False):
        super().__init__()
        self.body = lm.base_model.eval()  # the LM head is not needed; no dropout: first values equal the old ones
        self._checkpointed = checkpointed_layers(self.body) if gradient_checkpointing else []
        # Zero: before it has learnt anything the critic predicts 0, and GAE starts from the plain rewards.
        self.value_head = nn.Linear(lm.config.get_text_config().hidden_size, 1, dtype=lm.dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, tokens: Tensor, prompt_lengths: Tensor, response_lengths: Tensor) -> Tensor:
        """Values before each response token. [B, S], [B], [B] -> [B, R] in fp32, 0 on padding."""
        inputs = tokens[:, :-1]
        mask = length_mask(prompt_lengths + response_lengths - 1, inputs.shape[1])
        with checkpointing(self._checkpointed):
            hidden = self.body(input_ids=inputs, attention_mask=mask.long(), use_cache=False).last_hidden_state
        response_mask = length_mask(response_lengths, int(response_lengths.max()))
        row, column = response_mask.nonzero(as_tuple=True)
        flat = self.value_head(hidden[row, prompt_lengths[row] - 1 + column]).squeeze(1).float()
        return flat.new_zeros(response_mask.shape).index_put((row, column), flat)
