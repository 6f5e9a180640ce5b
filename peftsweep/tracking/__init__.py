"""MLflow: one run a job. A job never fails or waits for long because of tracking; what is missed is imported later."""

from peftsweep.tracking.reports import log_report
from peftsweep.tracking.restore import ImportReport, import_jobs
from peftsweep.tracking.store import DEFAULT_URI, resolve_uri
from peftsweep.tracking.studies import StudyRuns, close_lost_runs, open_studies
from peftsweep.tracking.summary import Score, StudySummary
from peftsweep.tracking.tracker import MlflowTracker, NoTracker, Tracker, default_run_name, open_tracker
from peftsweep.tracking.ui import serve_ui

__all__ = [
    "DEFAULT_URI",
    "ImportReport",
    "MlflowTracker",
    "NoTracker",
    "Score",
    "StudyRuns",
    "StudySummary",
    "Tracker",
    "close_lost_runs",
    "default_run_name",
    "import_jobs",
    "log_report",
    "open_studies",
    "open_tracker",
    "resolve_uri",
    "serve_ui",
]
