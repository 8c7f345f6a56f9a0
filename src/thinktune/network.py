"""Telemetry of libraries, switched off: the one place for it.

A model or data set named by a local path is used without any network. Libraries do not all keep to that: TRL reports
each training to the hub, the hub's client asks which agents there are before it does, Gradio and vLLM report that they
were started, PEFT asks the hub whether the base of an adapter that is saved has a config.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

SILENT: Mapping[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # of the hub's client, and of TRL and Gradio, which report by way of it
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # transformers asks the hub to convert pickled weights, which are refused
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "USE_HUB_KERNELS": "NO",  # transformers fetches programs from the hub where the package kernels is installed
}
"""Environment of this process and of all that it starts."""


def switch_off_telemetry() -> None:
    """Set `SILENT`, also for a hub client that was imported before and has read the environment already."""
    os.environ.update(SILENT)
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]


def keep_peft_local() -> None:
    """Let PEFT save adapters without asking the hub for the base's config.

    It wants to know whether the embeddings were resized since, which never happens here.
    """
    from peft.utils import save_and_load

    save_and_load.check_file_exists_on_hf_hub = lambda *_, **__: False
