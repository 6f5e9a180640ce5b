"""Supervised fine-tuning on the user's own prompts and responses, or chats.

    {"prompt": "Translate to French: Good morning", "response": "Bonjour"}
    {"messages": [{"role": "user", "content": "Good morning"}, {"role": "assistant", "content": "Bonjour"}]}

Judged by loss, exact match, and the user's own scorer: a function of (prompt, target, generated) that returns a number.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import sys
import textwrap
import traceback
from collections.abc import Callable
from functools import partial

from peftsweep.errors import ConfigError, DataError, Interrupted, Problem
from peftsweep.modalities.text.judging import Judgement, Judging
from peftsweep.modalities.text.metamath import embedded_source
from peftsweep.modalities.text.rows import Row, Source, file_source
from peftsweep.modalities.text.settings import SftConfig

VERSION = 1
Scorer = Callable[[str, str, str], float]


def load_scorer(path: str | None) -> Scorer | None:
    """Import `module:function`.

    Raises:
        ConfigError: the path has another form, or names nothing that can be called.
    """
    if path is None:
        return None
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m peftsweep` does, so that the `peftsweep` script finds it too
    try:
        scorer = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "Put the module in the current folder or on PYTHONPATH."
        raise ConfigError(
            Problem(f"task.scorer must name a function as module:function ({error})", path, "task.scorer", fix)
        ) from error
    if not callable(scorer):
        raise ConfigError(Problem("task.scorer must name a function", path, "task.scorer"))
    return scorer


def scorer_key(path: str | None) -> str:
    """Equal for scorers that score alike: the path and a fingerprint of the module's source, so that an edited scorer
    is another one."""
    scorer = load_scorer(path)
    if scorer is None:
        return ""
    try:
        source = inspect.getsource(sys.modules[scorer.__module__])
    except (OSError, TypeError, KeyError, AttributeError):  # compiled, or an instance of a class
        source = ""
    return f"{path} {hashlib.sha256(source.encode()).hexdigest()[:16]}"


def build_judging(config: SftConfig) -> Judging:
    score = "score" if config.scorer else "exact_match"
    judge = partial(_judge, load_scorer(config.scorer))
    return Judging(judge, scorer_key(config.scorer), VERSION, score)


def _judge(scorer: Scorer | None, row: Row, generated: str) -> Judgement:
    """Exact match apart from white space at the ends; the scorer's value first, where there is one."""
    values = {"exact_match": float(generated.strip() == row.response.strip())}
    if scorer is not None:
        values = {"score": score_by(scorer, row, generated)} | values
    return Judgement(generated.strip(), values)


def score_by(scorer: Scorer, row: Row, generated: str) -> float:
    """What the user's scorer gives. Raises ConfigError where it gives no number."""
    try:
        score = float(scorer(row.prompt, row.response, generated))
        reason = "" if math.isfinite(score) else f"it gave {score}"
    except Interrupted:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        told = textwrap.shorten(str(error), 200)
        score, reason = math.nan, f"{type(error).__name__}: {told}, in {frame.filename}, line {frame.lineno}"
    if reason:
        rule = f"task.scorer must give a number for every prompt, target and answer ({reason})"
        asked = tuple(textwrap.shorten(text, 80) for text in (row.prompt, row.response, generated))
        raise ConfigError(Problem(rule, asked, "task.scorer"))
    return score


def build_source(config: SftConfig, *, embedded_model: bool) -> Source:
    """The user's files; the text world's stories only where they are asked for."""
    if config.train_files:
        return file_source(config, config.messages_column)
    if config.source == "embedded":
        return embedded_source(config.valid_rows)
    fix = "Give task.train_files=<file>, and task.test_files=<file> if you have one."
    raise DataError(Problem("task=sft needs your data", source="task.train_files", fix=fix))
