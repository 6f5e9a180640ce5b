"""The embedded language model: its world of generated text, its pre-training, and the weights that ship."""

from pathlib import Path

LLAMA_FOLDER = Path(__file__).parent / "llama"
