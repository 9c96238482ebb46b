"""Models that listen: each takes a `Waveform` and returns a small dataclass or a vector, and loads on first use."""
