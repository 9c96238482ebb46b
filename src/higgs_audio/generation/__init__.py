"""The reference generation loop behind `model.generate()`: options, sampling, guidance, rules, the batch loop."""

from higgs_audio.generation.loop import generate, stream
from higgs_audio.generation.options import GenerateOptions
from higgs_audio.generation.output import GenerateOutput, Step
from higgs_audio.generation.sampling import SamplingOptions

__all__ = ["GenerateOptions", "GenerateOutput", "SamplingOptions", "Step", "generate", "stream"]
