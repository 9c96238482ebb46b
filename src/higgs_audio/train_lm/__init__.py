"""Training of the language model: examples, batches, losses, LoRA and the training loop."""
