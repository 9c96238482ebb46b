"""Models that analyse recordings: each takes a `Waveform`, returns a small dataclass or a vector, and loads lazily."""
