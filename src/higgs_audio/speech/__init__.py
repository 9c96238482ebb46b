"""Text to speech: voices, complete and streamed speech, long text."""

from higgs_audio.speech.result import Speech
from higgs_audio.speech.tts import HiggsAudio

__all__ = ["HiggsAudio", "Speech"]
