"""The embedded encoder: its scenes with what can be said of them, its pre-training, and the weights that ship."""

from pathlib import Path

BERT_FOLDER = Path(__file__).parent / "bert"
