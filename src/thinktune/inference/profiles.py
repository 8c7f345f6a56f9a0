"""Named sets of sampling by item type: each task's own by default, or the guide's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinktune.config import Infer, Profile, Sampling
from thinktune.errors import ConfigError
from thinktune.scoring import TASKS

# repetition_penalty 1.5 damages numbers and code, which have to repeat themselves: it is here to be compared with.
_ARTICLE = Sampling(temperature=0.3, top_p=0.9, repetition_penalty=1.5)

PROFILES: dict[Profile, Mapping[str, Sampling]] = {
    "default": {name: task.sampling for name, task in TASKS.items()},
    "article": {
        name: _ARTICLE.changed(max_tokens=task.sampling.max_tokens, n=task.sampling.n) for name, task in TASKS.items()
    },
}


def samplings(settings: Infer, seed: int = 0, **changes: Any) -> dict[str, Sampling]:
    """Return the sampling of each item type: the profile, `settings.profiles` over it, then the budget and the seed if
    they are not set, and `changes` over all.

    Raises:
        ConfigError: `think_budget` leaves a type no tokens for its answer.
    """
    chosen = {}
    wanted: dict[str, Sampling] = {**PROFILES[settings.profile]}
    wanted.update({str(name): sampling for name, sampling in settings.profiles.items()})
    for name, sampling in wanted.items():
        missing = {"seed": seed, "think_budget": settings.think_budget}
        try:
            unset = {field: value for field, value in missing.items() if getattr(sampling, field) is None}
            chosen[name] = sampling.changed(**{**unset, **changes})
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.message}", hint="lower the budget, or raise max_tokens") from None
    return chosen
