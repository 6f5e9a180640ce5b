"""Pictures of a study, drawn by Optuna's own matplotlib backend, and how much each setting mattered."""

from __future__ import annotations

import logging
import math
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import FrozenTrial

MIN_TRIALS_TO_DRAW = 2  # completed
MIN_TRIALS_FOR_IMPORTANCE = 10  # completed
_GOOD_TRIALS = 5  # what PED-ANOVA compares with the rest; Optuna advises at least as many
_STYLE: dict[Any, Any] = {"figure.figsize": (8.5, 4.5), "figure.dpi": 110, "font.size": 10}  # inches
_OUTLIER = 6.0  # times the distance from best to median objective; what lies beyond would flatten all the rest
_MAX_TICKS = 8  # distinct numbers of a setting that each get a tick

_log = logging.getLogger(__name__)


def completed_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Those with a finite objective, by number."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in trials if math.isfinite(objective_of(trial))]


def objective_of(trial: FrozenTrial) -> float:
    return math.nan if trial.value is None else trial.value


def is_feasible(trial: FrozenTrial) -> bool:
    return all(excess <= 0 for excess in trial.constraints.values())


def parameter_importance(study: optuna.Study) -> dict[str, float]:
    """Each setting's share in what the good trials have in common, by PED-ANOVA; empty for too few trials."""
    if len(completed_trials(study)) < MIN_TRIALS_FOR_IMPORTANCE:
        return {}
    from optuna.importance import get_param_importances

    with _quiet():
        found = get_param_importances(_comparable(study), evaluator=_importance_evaluator(study))
    return {key: share for key, share in found.items() if math.isfinite(share)}


def _importance_evaluator(study: optuna.Study) -> PedAnovaImportanceEvaluator:
    """The default looks at the best tenth, which for a study of 16 trials is one or two, and a coin toss."""
    from optuna.importance import PedAnovaImportanceEvaluator

    return PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, _GOOD_TRIALS / len(completed_trials(study)))))


def draw_study(study: optuna.Study, folder: Path, objective: str) -> list[Path]:
    """Write what can be drawn of a study as PNG files; what can't is left out."""
    if len(completed_trials(study)) < MIN_TRIALS_TO_DRAW:
        return []
    _avoid_windows()
    with _quiet():
        drawn = [_draw(name, draw, folder) for name, draw in _drawings(study, objective).items()]
    return [path for path in drawn if path is not None]


def _drawings(study: optuna.Study, objective: str) -> dict[str, Callable[[], Figure]]:
    from optuna.visualization import matplotlib as draw

    outliers = _outliers(study)
    inner = _comparable(study, leave_out=outliers)
    note = f"{len(outliers)} far worse {'trial' if len(outliers) == 1 else 'trials'} not drawn" if outliers else ""
    drawings = {"history": lambda: _noted(draw.plot_optimization_history(inner, target_name=objective), note)}
    if any(trial.params for trial in completed_trials(inner)):
        drawings["slice"] = lambda: _slice(draw.plot_slice(inner, target_name=objective), inner, note)
        drawings["parallel_coordinate"] = lambda: _parallel(
            draw.plot_parallel_coordinate(inner, target_name=objective), note
        )
    if len(parameter_importance(study)) > 1:
        evaluator, whole = _importance_evaluator(study), _comparable(study)
        drawings["importance"] = lambda: _noted(
            draw.plot_param_importances(whole, evaluator=evaluator, target_name=objective), ""
        )
    return drawings


def _noted(axes: Axes, note: str) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.text(0.99, -0.02, note, ha="right", va="top", fontsize="small", color="dimgray")
    return figure


def _slice(drawn: Any, study: optuna.Study, note: str) -> Figure:
    """Ranks and block sizes double from one to the next: one tick each, equally far apart."""
    import numpy

    panels = list(numpy.atleast_1d(drawn))
    for panel in panels:
        key = panel.get_xlabel()
        values = {trial.params[key] for trial in completed_trials(study) if key in trial.params}
        if len(values) <= _MAX_TICKS and all(type(value) is int and value > 0 for value in values):
            panel.set_xscale("log", base=2)
            panel.set_xlim(min(values) / 1.2, max(values) * 1.2)
            panel.set_xticks(sorted(values), labels=[str(value) for value in sorted(values)])
        elif panel.get_xscale() == "log":
            _number_ticks(panel.xaxis)
    return _noted(panels[0], note)


def _parallel(axes: Axes, note: str) -> Figure:
    """Lines of the worst trials are white on white in Optuna's colours, and tick labels lie under the lines."""
    figure = _noted(axes, note)
    axes.collections[0].set_cmap("viridis")
    for panel in figure.axes[2:]:  # behind the first and the colour bar: one for each setting
        if panel.get_yscale() == "log":
            _number_ticks(panel.yaxis)
        for label in panel.get_yticklabels():
            label.set_bbox({"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8})
            label.set_zorder(3)
    return figure


def _number_ticks(axis: Axis) -> None:
    """0.001 and 0.0002, as one types them, and no crowd of minor labels."""
    import numpy
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    if high < 10 * low:  # less than a decade, where LogLocator falls back to a crowd of linear ticks
        ticks = [float(f"{tick:.2g}") for tick in numpy.geomspace(low, high, 5)[1:-1]]
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _outliers(study: optuna.Study) -> set[int]:
    """Numbers of the trials so bad, diverged perhaps, that a picture with them shows nothing else."""
    trials = completed_trials(study)
    values = [objective_of(trial) for trial in trials]
    best = max(values) if study.direction.name == "MAXIMIZE" else min(values)
    distances = {trial.number: abs(objective_of(trial) - best) for trial in trials}
    limit = _OUTLIER * statistics.median(distances.values())
    return {number for number, distance in distances.items() if distance > limit > 0}


def _draw(name: str, draw: Callable[[], Figure], folder: Path) -> Path | None:
    from matplotlib import pyplot, rc_context

    before = set(pyplot.get_fignums())
    path = folder / f"{name}.png"
    with rc_context(_STYLE):  # Optuna sets a style sheet for the whole process
        try:
            draw().savefig(path, bbox_inches="tight")
        except Exception as error:  # a picture is no reason to stop
            _log.debug("the plot %s was left out: %r", name, error)
            return None
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
    return path


def _avoid_windows() -> None:
    """Without a choice of the user's, pyplot opens a window system where there is one."""
    import matplotlib

    if "matplotlib.pyplot" not in sys.modules and "MPLBACKEND" not in os.environ:
        matplotlib.use("Agg")


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna calls its matplotlib backend experimental, warns of few trials, and tells of every study it makes."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _comparable(study: optuna.Study, leave_out: Container[int] = ()) -> optuna.Study:
    """A copy in memory in which each setting has one range, although the real one was widened on the way."""
    import optuna
    from optuna.trial import TrialState, create_trial

    trials = study.get_trials(deepcopy=False)
    ranges: dict[str, BaseDistribution] = {}
    for trial in trials:
        for key, distribution in trial.distributions.items():
            ranges[key] = _union(ranges.get(key), distribution)
    copy = optuna.create_study(direction=study.direction)
    for trial in trials:
        is_complete = trial.state is TrialState.COMPLETE and trial.number not in leave_out
        copy.add_trial(
            create_trial(
                state=TrialState.COMPLETE if is_complete else TrialState.FAIL,  # keeps the numbers
                value=trial.value if is_complete else None,
                params=trial.params,
                distributions={key: ranges[key] for key in trial.params},
                constraints=trial.constraints,
            )
        )
    return copy


def _union(first: BaseDistribution | None, second: BaseDistribution) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(first, FloatDistribution) and isinstance(second, FloatDistribution):
        return FloatDistribution(min(first.low, second.low), max(first.high, second.high), log=second.log)
    if isinstance(first, IntDistribution) and isinstance(second, IntDistribution):
        return IntDistribution(min(first.low, second.low), max(first.high, second.high), log=second.log)
    if isinstance(first, CategoricalDistribution) and isinstance(second, CategoricalDistribution):
        return CategoricalDistribution(tuple(dict.fromkeys((*first.choices, *second.choices))))
    return second
