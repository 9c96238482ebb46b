"""The plain generation loop behind `model.generate()`: sampling, guidance, rules."""

from higgs_audio.generation.loop import GenerateOutput, Step, generate, stream
from higgs_audio.generation.sampling import SamplingOptions

__all__ = ["GenerateOutput", "SamplingOptions", "Step", "generate", "stream"]
