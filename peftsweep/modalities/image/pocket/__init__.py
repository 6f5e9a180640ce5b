"""The embedded diffusion pipeline and image encoder: their drawn world, pre-training, and the weights that ship."""

from pathlib import Path

FLUX2_FOLDER = Path(__file__).parent / "flux2"
DINO_FOLDER = Path(__file__).parent / "dino"
