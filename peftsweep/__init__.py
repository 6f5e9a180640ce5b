"""peftsweep: which PEFT method to use, on your model, your data and your GPU, found out fairly."""

__version__ = "0.1.0"
