"""Training of the audio tokenizer and of its semantic teacher."""
