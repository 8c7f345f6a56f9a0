"""The section `data`: sources, and which of their rows are learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from thinktune.config.explain import LIST, NAME
from thinktune.config.section import Section


class Source(Section):
    """One of several data sources."""

    source: str
    weight: float = Field(1.0, gt=0, description="share of the sample, relative to the other sources")
    split: str | None = Field(None, description="overrides data.split")


class Data(Section):
    """Training data: source, number of examples, and which rows are usable."""

    _renamed: ClassVar[dict[str, str]] = {"shape": "format"}

    source: Annotated[
        Annotated[str, Tag(NAME)] | Annotated[list[Source], Tag(LIST)],
        Discriminator(lambda value: NAME if isinstance(value, str) else LIST),
    ] = Field("builtin:arithmetic", description="file, folder, hub id, ms: id or builtin:")
    split: str = "train"
    sample: int | None = Field(None, ge=1, description="number of usable examples, drawn by seed; null: all")
    seed: int | None = Field(None, description="null: the top-level seed")
    max_length: int = Field(2048, ge=16, description="max tokens of an example, prompt and end-of-turn token included")
    overlong: Literal["drop", "error", "cut"] = Field(
        "drop", description="examples above max_length: drop them, stop with an error, or truncate them"
    )
    system: str = Field("drop", description="drop or keep the row's own system text, or a text to use instead")
    format: str | None = Field(None, description="row format: its name, or module:function; null: by each row's keys")
    eval_fraction: float = Field(
        0.0, ge=0, lt=1, description="fraction of the examples held out for the evaluation loss"
    )
    cache: Path = Field(Path("data/reasoning"), description="folder of downloaded hub data sets")

    @property
    def sources(self) -> list[Source]:
        return [Source(source=self.source)] if isinstance(self.source, str) else self.source

    @property
    def outcome(self) -> dict[str, Any]:
        """The settings that the examples depend on."""
        return self.model_dump(exclude={"cache"})

    @property
    def chat_settings(self) -> dict[str, str]:
        """The keyword arguments of models.make_chat: a system text of the config replaces the model's own."""
        return {} if self.system in ("drop", "keep") else {"system": self.system}
