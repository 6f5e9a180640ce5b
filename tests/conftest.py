"""For all tests: one thread a process, since the suite runs several side by side; no hub; Ctrl-C works."""

import gc
import os
import signal
import threading

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell without job control starts background commands with SIGINT ignored, and children inherit that: a job that a
# test interrupts would run on for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays: a tenth of the time went into looking through it for garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


# The same examples each time: a gate that fails by chance is none.
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")
