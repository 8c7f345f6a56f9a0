"""The parts of a training's start, timed inside the process that trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Parts:
    """Seconds of each part, from the end of the one before it, in the order in which they ended.

    Attributes:
        loading_peak: bytes on the GPU while the model was loaded; 0 on a CPU.
        at_mark: called with the name of each part as it ends.
    """

    def __init__(self, began: float) -> None:
        self.seconds: dict[str, float] = {}
        self.loading_peak = 0
        self.at_mark: Callable[[str], None] = lambda part: None
        self._last = self._began = began

    def mark(self, part: str) -> None:
        """End a part, unless the first step is over."""
        if not self.ended:
            now = time.time()
            self.seconds[part] = now - self._last
            self._last = now
            self.at_mark(part)

    @property
    def ended(self) -> bool:
        return "first step" in self.seconds

    @property
    def all(self) -> float:
        return self._last - self._began

    def describe(self) -> str:
        return ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())

    def mark_after(self, module: Any, name: str, part: str) -> None:
        """Mark a part as ended whenever a function of a module returns."""
        function = getattr(module, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            value = function(*args, **kwargs)
            self.mark(part)
            return value

        setattr(module, name, marked)


def watch_training(began: float, after_first_step: Callable[[Parts], None] = lambda parts: None) -> Parts:
    """Time the parts of a training that this process is yet to start, up to the end of its first optimizer step.

    Args:
        began: seconds since the epoch.
        after_first_step: is called then.
    """
    from thinktune.training import imports

    parts = Parts(began)
    import_train = imports.import_train

    def import_and_mark(loaded: Any) -> Any:
        parts.mark("Python, command line, config")
        train = import_train(loaded)
        parts.mark("imports")
        import torch
        from transformers.trainer_callback import CallbackHandler

        from thinktune.training import base_model_cache
        from thinktune.training import train as training

        load_model, on_step_end = base_model_cache.load_model, CallbackHandler.on_step_end

        def load(*args: Any, **kwargs: Any) -> Any:
            loaded = load_model(*args, **kwargs)
            parts.loading_peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
            parts.mark("model")
            return loaded

        def end_step(*args: Any, **kwargs: Any) -> Any:
            if not parts.ended:
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                parts.mark("first step")
                after_first_step(parts)
            return on_step_end(*args, **kwargs)

        base_model_cache.load_model, CallbackHandler.on_step_end = load, end_step
        for module, name, part in (
            (base_model_cache, "prepare", "data"),
            (training, "adapter_to_train", "checks of the data"),
            (training, "resolve_plan", "adapter, plan"),
            (training, "compile_kernels", "kernels compiled"),
            (training, "examine_in_float32", "check in float32"),
            (training, "examine_as_set_up", "check as set up"),
            (training, "warm_up_step", "warm-up step"),
            (CallbackHandler, "on_step_begin", "trainer"),
        ):
            parts.mark_after(module, name, part)
        return train

    imports.import_train = import_and_mark
    return parts
