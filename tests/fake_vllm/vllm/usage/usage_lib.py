"""See the package."""

from enum import Enum


class UsageContext(Enum):
    LLM_CLASS = "LLM_CLASS"
    ENGINE_CONTEXT = "ENGINE_CONTEXT"
