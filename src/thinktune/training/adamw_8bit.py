"""bitsandbytes' AdamW with states in 8 bits, for parameters of a GPU's own memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes.optim import AdamW


class AdamW8bit(AdamW):
    """Steps to the same numbers without a wait for the GPU after each parameter.

    bitsandbytes waits there for the sake of states that are paged. An adapter of a 3B model has 504 parameters, each
    updated within microseconds, and while the host goes through them the backward pass is still running.
    """

    initialized: bool

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self.is_paged:
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, number, index)
                self.update_step(group, parameter, number, index)
        return loss
