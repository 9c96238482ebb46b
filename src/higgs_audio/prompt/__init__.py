"""Prompts: the only renderer from messages to tensors and labels, and from tensors to responses."""

from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Prompt, Turn, Voice, to_messages

__all__ = ["HiggsAudioProcessor", "Prompt", "Turn", "Voice", "to_messages"]
