"""MLflow: one run a job. A job never fails or waits for long because of tracking; what is missed is imported later."""

from peftsweep.tracking.restore import ImportReport, import_jobs
from peftsweep.tracking.store import DEFAULT_URI, resolve_uri
from peftsweep.tracking.tracker import MlflowTracker, NoTracker, Tracker, default_run_name, open_tracker
from peftsweep.tracking.ui import serve_ui

__all__ = [
    "DEFAULT_URI",
    "ImportReport",
    "MlflowTracker",
    "NoTracker",
    "Tracker",
    "default_run_name",
    "import_jobs",
    "open_tracker",
    "resolve_uri",
    "serve_ui",
]
