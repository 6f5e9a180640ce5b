"""Which confirm jobs a study needs: its best settings with fresh seeds, and the published default beside them."""

from __future__ import annotations

from collections.abc import Sequence

from peftsweep.config.schema import ConfirmConfig
from peftsweep.records.space import defaults_of
from peftsweep.sweeps.protocol.specification import StudySpec
from peftsweep.sweeps.protocol.trials import Terms, Trial


def fresh_seeds(study: StudySpec, count: int) -> list[int]:
    """Seeds that tuning has not used."""
    return [(study.seed + 1 + index) % 2**32 for index in range(count)]


def confirm_jobs_due(
    study: StudySpec, settings: ConfirmConfig, best: Trial | None, confirmed: Sequence[Trial]
) -> list[Terms]:
    """The best settings with each fresh seed, then the default with the first; none that was made before."""
    default = defaults_of(study.space)
    if best is None:
        return []
    wanted = [Terms("best", best.params, seed) for seed in fresh_seeds(study, settings.seeds)]
    if default and best.params != default:
        wanted += [Terms("default", default, seed) for seed in fresh_seeds(study, settings.default_seeds)]
    made = [(trial.terms.params, trial.terms.seed) for trial in confirmed]
    return [terms for terms in wanted if (terms.params, terms.seed) not in made]
