"""Generation verified by speech recognition: a text is generated again until its transcript has no errors."""

from dataclasses import dataclass

from typing_extensions import Unpack

from higgs_audio.errors import check_count
from higgs_audio.evaluate.metrics import ErrorCount, word_errors
from higgs_audio.evaluate.requirements import WORDS, check_packages
from higgs_audio.listen.asr import transcribe
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.request import SpeechOptions
from higgs_audio.speech.result import Speech
from higgs_audio.speech.tts import HiggsAudio
from higgs_audio.text import split_utterances

ASR_MODEL = "whisper-tiny.en"  # 0.1 s per sentence; its transcripts nearly always equal those of larger models
SEED_STEP = 1_000_003  # difference between the seeds of tries; utterances of a text have consecutive seeds


@dataclass(frozen=True)
class VerifiedSpeech:
    """The best of several tries.

    Attributes:
        speech: the try with the fewest word errors; the first of equal ones.
        transcript: transcript of `speech`.
        errors: word errors of the transcript.
        num_tries: number of tries; a try without errors is the last one.
    """

    speech: Speech
    transcript: str
    errors: ErrorCount
    num_tries: int


def generate_verified(
    tts: HiggsAudio,
    text: str,
    voice: Voice | str | None = None,
    *,
    num_tries: int = 3,
    asr_model: str = ASR_MODEL,
    **options: Unpack[SpeechOptions],
) -> VerifiedSpeech:
    """Generates a text until its transcript has no word errors, at most `num_tries` times, and returns the best try.

    Args:
        tts: the model.
        text, voice: as in `HiggsAudio.generate`.
        num_tries: maximum number of tries.
        asr_model: the ASR model, as in `listen.asr.transcribe`.
        **options: as in `HiggsAudio.generate`; `seed` is the seed of the first try, from which the others are derived.

    Raises:
        OptionError: `num_tries` is below 1, or an option is invalid, as in `generate`.
        MissingExtraError: a package of the ASR model is not installed.
        TextError: the text has no word to compare with.
        HiggsAudioError: as for `HiggsAudio.generate`.
    """
    check_count("num_tries", num_tries, 1)
    seed = options.get("seed")
    if seed is not None:
        check_count("seed", seed, 0, 2**62)
    check_packages(asr_model, WORDS)
    spoken = " ".join(split_utterances(text))  # without markup
    best: VerifiedSpeech | None = None
    for number in range(num_tries):
        options["seed"] = None if seed is None else seed + number * SEED_STEP
        speech = tts.generate(text, voice, **options)
        transcript = transcribe([speech.waveform], asr_model)[0].text
        errors = word_errors(spoken, transcript)
        if best is None or errors.errors < best.errors.errors:
            best = VerifiedSpeech(speech, transcript, errors, number + 1)
        if not errors.errors:
            break
    assert best is not None
    return VerifiedSpeech(best.speech, best.transcript, best.errors, number + 1)
