"""What a winner must keep to: limits on what a trial measures."""

from __future__ import annotations

from peftsweep.errors import ConfigError, Problem
from peftsweep.records.limits import Limit, parse_limits
from peftsweep.records.metrics import candidates

SOURCE = "constraint"
# A trial never reads test data, so that a limit on these would keep nobody out.
NOT_OF_A_TRIAL = ("test/", "base/")


def trial_limits(constraint: str | None) -> tuple[Limit, ...]:
    """Several are separated by commas. Raises ConfigError for what is no limit, or is none of a trial's metrics."""
    limits = parse_limits([constraint], SOURCE) if constraint else ()
    for limit in limits:
        if all(key.startswith(NOT_OF_A_TRIAL) for key in candidates(limit.name)):
            rule = "a constraint must be on what a trial measures, and a trial reads no test data"
            fix = f"Limit memory, time, forgetting or valid/loss; afterwards, `peftsweep recommend '{limit.text}'`."
            raise ConfigError(Problem(rule, limit.text, SOURCE, fix))
    return limits
