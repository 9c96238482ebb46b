"""What a language model in training says: a few held-out sentences spoken, written down and counted."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from higgs_audio.audio.files import write
from higgs_audio.errors import MissingExtraError
from higgs_audio.evaluate.metrics import corpus_rate, word_errors
from higgs_audio.listen.asr import transcribe
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.speech.tts import HiggsAudio


def speak_samples(
    model: HiggsAudioForConditionalGeneration,
    processor: HiggsAudioProcessor,
    texts: Sequence[str],
    profile: str | None,
    folder: Path,
) -> dict[str, float]:
    """Speaks `texts` into `folder/N.wav`, with the same seeds every time.

    Returns:
        "sample_seconds", their mean length, and with the `evaluate` extra "sample_wer", by whisper base.
    """
    folder.mkdir(parents=True, exist_ok=True)
    voices = {"sampled": {"profile": profile, "description": ""}} if profile else None
    was_training = model.training
    tts = HiggsAudio(model.eval(), processor, voices)
    spoken = [tts.generate(text, seed=number).waveform for number, text in enumerate(texts)]
    model.train(was_training)
    for number, sound in enumerate(spoken):
        write(sound, folder / f"{number}.wav")
    values = {"sample_seconds": sum(sound.seconds for sound in spoken) / len(spoken)}
    try:
        heard = [transcript.text for transcript in transcribe(spoken)]
        errors = [word_errors(*pair) for pair in zip(texts, heard, strict=True)]
    except MissingExtraError as error:
        warnings.warn(f"sampled, not transcribed: {error}", stacklevel=2)
        return values
    return values | {"sample_wer": corpus_rate(errors)}
