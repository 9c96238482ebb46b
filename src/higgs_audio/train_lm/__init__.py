"""Training of the language model: examples, batches, losses, LoRA, the loop."""
