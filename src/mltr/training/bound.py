"""Modules whose state holds only together with weights that are not in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mltr.errors import UsageError


class BoundModule(nn.Module):
    """A module bound to other weights, such as those of a frozen backbone or a teacher.

    `bound_to` is the fingerprint of these weights, which goes into the state. `whose` and `option`
    say in the error whose weights they are, and which option has to give the same ones again.
    """

    bound_to: bytes
    whose: str
    option: str

    def get_extra_state(self) -> Tensor:
        """Return the fingerprint, uint8."""
        return torch.frombuffer(bytearray(self.bound_to), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raise `UsageError` unless the state was made with the same weights."""
        if bytes(state.cpu().numpy()) != self.bound_to:
            raise UsageError(
                f"{self.whose} are others than when this run began: give it the "
                f"{self.option}, or start over with --overwrite"
            )
