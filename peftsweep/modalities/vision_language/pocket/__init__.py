"""The embedded vision-language model: its pictures with what can be said and asked of them, its pre-training, and the
weights that ship."""

from pathlib import Path

VLM_FOLDER = Path(__file__).parent / "vlm"
