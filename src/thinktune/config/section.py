"""The base of every section: unknown keys are refused, former names of keys are understood."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

log = logging.getLogger(__name__)

FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""A function of the user's own, as module:function."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    _renamed: ClassVar[dict[str, str]] = {}
    """Former names of keys, with the present ones; they are understood, and a notice gives the new name."""
    _retired: ClassVar[dict[str, str]] = {}
    """Former keys without effect, each with the reason, for the notice."""

    @model_validator(mode="before")
    @classmethod
    def _under_new_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        section = cls.__name__.lower()
        for old in cls._renamed.keys() & values.keys():
            if cls._renamed[old] in values:
                raise ValueError(f"{old} is the former name of {cls._renamed[old]}: set one of them")
            log.warning("%s.%s is called %s now", section, old, cls._renamed[old])
        for old in cls._retired.keys() & values.keys():
            log.warning("%s.%s has no effect any more: %s", section, old, cls._retired[old])
        return {cls._renamed.get(key, key): value for key, value in values.items() if key not in cls._retired}

    @model_validator(mode="before")
    @classmethod
    def _without_empty_sections(cls, values: Any) -> Any:
        """Drop sections that are null, as YAML reads `eval:` with nothing below it: their defaults are meant."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or not cls._is_section(key)}

    @classmethod
    def _is_section(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers: Python takes true for 1, but nobody who writes `r: true` means that."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("should not be true or false")
        return value
