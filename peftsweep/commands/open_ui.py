"""`peftsweep ui`: MLflow's pages on a store, for this machine only."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from peftsweep.commands.words import build_parser
from peftsweep.errors import Problem, TrackingError
from peftsweep.records.redact import redact_forms

URI_HELP = "tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///outputs/mlflow.db)"
_HOST = "127.0.0.1"


def run(arguments: Sequence[str]) -> int:
    """Serve MLflow until it is interrupted."""
    parser = build_parser("ui", "Open MLflow on 127.0.0.1.")
    parser.add_argument("--uri", help=URI_HELP)
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args(arguments)
    return serve_ui(options.uri, options.port)


def serve_ui(uri: str | None, port: int) -> int:
    """Run `mlflow ui` until Ctrl-C; returns its exit code.

    Raises:
        TrackingError: there is nothing to show, somebody else serves it already, or the port is taken.
    """
    from peftsweep.tracking.store import connect, explained, resolve_uri, views

    uri = resolve_uri(uri)
    _check_can_serve(uri, port)
    address = f"http://{_HOST}:{port}"
    print("MLflow starts ...", flush=True)
    with explained(Problem("the database must be one of MLflow's", redact_forms(uri), "tracking.uri")):
        pages = views(connect(uri), address)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", _HOST, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    # By environment: a database password on the command line is visible to everybody on the machine.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # its extra processes serve no page of ours
    environment |= {"PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    with (
        tempfile.TemporaryFile() as messages,  # shown where it fails; else they are about MLflow's own workings
        subprocess.Popen(command, env=environment, stdout=messages, stderr=messages) as process,
    ):
        try:
            if _answers(process, port):
                told = [f"Open {page}   (experiment {name})" for name, page in pages.items()] or [f"Open {address}"]
                print(*told, "Ctrl-C stops it.", sep="\n", flush=True)
            code = process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the server too
            process.wait()
            return 0
        messages.seek(0)
        print(messages.read().decode(errors="replace"), file=sys.stderr, end="")
        return code


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server takes connections; False if it ends before."""
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
            return True
        time.sleep(0.2)
    return False


def _check_can_serve(uri: str, port: int) -> None:
    from peftsweep.tracking.store import is_server, sqlite_path

    if is_server(uri):
        raise TrackingError(
            Problem("a tracking server serves its own pages", redact_forms(uri), fix="Open it in a browser.")
        )
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise TrackingError(Problem("the database must exist", str(path), "tracking.uri", "Run a job first."))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise TrackingError(
                Problem(f"the port must be free ({error.strerror})", port, "port", "Choose another.")
            ) from None
