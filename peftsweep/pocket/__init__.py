"""The embedded miniature: generated worlds, pre-training scripts and the weights that ship with the package."""

from pathlib import Path

LLAMA_FOLDER = Path(__file__).parent / "llama"
FLUX2_FOLDER = Path(__file__).parent / "flux2"
DINO_FOLDER = Path(__file__).parent / "dino"
