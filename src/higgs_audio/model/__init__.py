"""The language model: DualFFN layers, the audio tower, quantized and offloaded weights."""

from higgs_audio.model.model import HiggsAudioForConditionalGeneration, HiggsAudioModel

__all__ = ["HiggsAudioForConditionalGeneration", "HiggsAudioModel"]
