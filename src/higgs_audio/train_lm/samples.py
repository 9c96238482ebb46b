"""Audio samples during training: held-out sentences, generated, transcribed and scored."""

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


def generate_samples(
    model: HiggsAudioForConditionalGeneration,
    processor: HiggsAudioProcessor,
    texts: Sequence[str],
    profile: str | None,
    folder: Path,
) -> dict[str, float]:
    """Generates `texts` and writes them to `folder/N.wav`, with the same seeds in every call.

    Returns:
        "sample_seconds", the mean duration, and with the `evaluate` extra "sample_wer", the word error rate of the
        transcripts of Whisper base.
    """
    folder.mkdir(parents=True, exist_ok=True)
    voices = {"sampled": {"profile": profile, "description": ""}} if profile else None
    was_training = model.training
    tts = HiggsAudio(model.eval(), processor, voices)
    waveforms = [tts.generate(text, seed=number).waveform for number, text in enumerate(texts)]
    model.train(was_training)
    for number, waveform in enumerate(waveforms):
        write(waveform, folder / f"{number}.wav")
    values = {"sample_seconds": sum(waveform.seconds for waveform in waveforms) / len(waveforms)}
    try:
        transcripts = [transcript.text for transcript in transcribe(waveforms)]
        errors = [word_errors(*pair) for pair in zip(texts, transcripts, strict=True)]
    except MissingExtraError as error:
        warnings.warn(f"samples were generated but not transcribed: {error}", stacklevel=2)
        return values
    return values | {"sample_wer": corpus_rate(errors)}
