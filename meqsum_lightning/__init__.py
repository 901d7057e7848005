"""LoRA ablations for consumer health question summarization, on PyTorch Lightning."""

__version__ = "0.1.0"
