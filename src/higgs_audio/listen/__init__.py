"""Models that analyze recordings: each takes a `Waveform`, returns a dataclass or a vector, and is loaded lazily."""
