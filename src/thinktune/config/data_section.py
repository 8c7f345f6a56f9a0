"""The section `data`: sources, and which of their rows are learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from thinktune.config.explain import LIST, NAME
from thinktune.config.section import FUNCTION, Section


class Filter(Section):
    """The usable examples that are learnt from; all others are dropped."""

    min_tokens: int | None = Field(None, ge=1, description="fewest tokens of an example, prompt included")
    max_tokens: int | None = Field(None, ge=1, description="most tokens of an example, prompt included")
    shortest: int | None = Field(None, ge=1, description="number of examples of the source to keep, the shortest ones")
    right: bool | str = Field(
        False,
        description="only rows whose answer is equal to their gold answer by the scorer; true: the gold answer is in "
        "the column reference or answer; or the name of its column",
    )
    function: str | None = Field(
        None, pattern=FUNCTION, description="module:function of yours, row -> bool: whether to keep it"
    )

    @property
    def by_tokens(self) -> bool:
        """Whether examples have to be tokenised before it is known which are kept."""
        return any(limit is not None for limit in (self.min_tokens, self.max_tokens, self.shortest))

    @model_validator(mode="after")
    def _in_order(self) -> Filter:
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}: no row is between")
        return self


class Source(Section):
    """One of several data sources."""

    source: str
    weight: float = Field(1.0, gt=0, description="share of the sample, relative to the other sources")
    split: str | None = Field(None, description="overrides data.split")
    filter: Filter | None = Field(None, description="overrides data.filter")


class Problems(Section):
    """Evaluation data, of which no problem is to be trained."""

    source: str = Field(description="file, folder, hub id, ms: id or builtin:")
    split: str = "test"


_BY_NAME = Discriminator(lambda value: NAME if isinstance(value, str) else LIST)


class Data(Section):
    """Training data: source, number of examples, and which rows are usable."""

    _renamed: ClassVar[dict[str, str]] = {"shape": "format"}

    source: Annotated[Annotated[str, Tag(NAME)] | Annotated[list[Source], Tag(LIST)], _BY_NAME] = Field(
        "builtin:arithmetic", description="file, folder, hub id, ms: id or builtin:"
    )
    split: str = "train"
    sample: int | None = Field(None, ge=1, description="number of usable examples, drawn by seed; null: all")
    seed: int | None = Field(None, description="null: the top-level seed")
    max_length: int = Field(2048, ge=16, description="max tokens of an example, prompt and end-of-turn token included")
    overlong: Literal["drop", "error", "cut"] = Field(
        "drop", description="examples above max_length: drop them, stop with an error, or truncate them"
    )
    system: str = Field("drop", description="drop or keep the row's own system text, or a text to use instead")
    filter: Filter = Filter()
    deduplicate: bool | Literal["prompts"] = Field(
        False,
        description="true: drop exact and near duplicates of earlier examples; prompts: of their prompts, whatever "
        "the replies",
    )
    decontaminate: list[Annotated[Annotated[str, Tag(NAME)] | Annotated[Problems, Tag(LIST)], _BY_NAME]] = Field(
        [], description="evaluation data; examples that hold one of its problems are dropped"
    )
    format: str | None = Field(None, description="row format: its name, or module:function; null: by each row's keys")
    eval_fraction: float = Field(
        0.0, ge=0, lt=1, description="fraction of the examples held out for the evaluation loss"
    )
    cache: Path = Field(Path("data/reasoning"), description="folder of downloaded hub data sets")

    @property
    def sources(self) -> list[Source]:
        return [Source(source=self.source)] if isinstance(self.source, str) else self.source

    @property
    def problems(self) -> list[Problems]:
        return [Problems(source=each) if isinstance(each, str) else each for each in self.decontaminate]

    @property
    def outcome(self) -> dict[str, Any]:
        """The settings that the examples depend on."""
        return self.model_dump(exclude={"cache"})

    @property
    def chat_settings(self) -> dict[str, str]:
        """The keyword arguments of models.make_chat: a system text of the config replaces the model's own."""
        return {} if self.system in ("drop", "keep") else {"system": self.system}
