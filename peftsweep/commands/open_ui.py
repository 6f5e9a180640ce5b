"""`peftsweep ui`: MLflow in a browser."""

from __future__ import annotations

from collections.abc import Sequence

from peftsweep.commands.words import build_parser

URI_HELP = "tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///outputs/mlflow.db)"


def run(arguments: Sequence[str]) -> int:
    """Serve MLflow until it is interrupted."""
    parser = build_parser("ui", "Open MLflow on 127.0.0.1.")
    parser.add_argument("--uri", help=URI_HELP)
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args(arguments)
    from peftsweep.tracking.ui import serve_ui

    return serve_ui(options.uri, options.port)
