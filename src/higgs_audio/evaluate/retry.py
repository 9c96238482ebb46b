"""Speech that is heard before it is handed out: where a listener does not hear the text, it is said again."""

from dataclasses import dataclass
from typing import Any

from higgs_audio.errors import check_count
from higgs_audio.evaluate.judges import WORDS, check_judges
from higgs_audio.evaluate.metrics import ErrorCount, word_errors
from higgs_audio.listen.asr import transcribe
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.result import Speech
from higgs_audio.speech.tts import HiggsAudio

LISTENER = "whisper-tiny.en"  # a tenth of a second for a sentence; it hears what a larger one hears, nearly always
SEED_STEP = 1_000_003  # between tries; utterances of a text have neighbouring seeds


@dataclass(frozen=True)
class VerifiedSpeech:
    """The best of several tries.

    Attributes:
        speech: the one with the fewest word errors, the earliest of equals.
        transcript: what was heard in it.
        errors: of the transcript, by word.
        num_tries: how many there were; none is made behind one without errors.
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
    listener: str = LISTENER,
    seed: int | None = None,
    **options: Any,
) -> VerifiedSpeech:
    """Speaks a text until a listener hears it without errors, at most `num_tries` times; the best try is given.

    Args:
        tts: who speaks.
        text, voice, options: of `HiggsAudio.generate`.
        num_tries: at most.
        listener: an ASR model, as in `listen.asr.transcribe`.
        seed: of the first try; the others' follow from it.

    Raises:
        OptionError: no try at all, and what `generate` raises. MissingExtraError: the listener is not installed.
        TextError: no word is left of the text to compare with.
    """
    check_count("num_tries", num_tries, 1)
    if seed is not None:
        check_count("seed", seed, 0, 2**62)
    check_judges(listener, WORDS)
    best: VerifiedSpeech | None = None
    for number in range(num_tries):
        own = None if seed is None else seed + number * SEED_STEP
        speech = tts.generate(text, voice, seed=own, **options)
        heard = transcribe([speech.waveform], listener)[0].text
        errors = word_errors(text, heard)
        if best is None or errors.errors < best.errors.errors:
            best = VerifiedSpeech(speech, heard, errors, number + 1)
        if not errors.errors:
            break
    assert best is not None
    return VerifiedSpeech(best.speech, best.transcript, best.errors, number + 1)
