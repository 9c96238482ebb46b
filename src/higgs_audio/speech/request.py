"""Speech requests: the checked arguments of a call, its text split into utterances, and their engine requests."""

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from higgs_audio import engine
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.errors import OptionError, TextError, check_count, nearest
from higgs_audio.generation.rules import read_rules, read_seeds
from higgs_audio.generation.sampling import SAMPLING_NAMES, SamplingKwargs, SamplingOptions
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Turn, Voice, compose, to_messages
from higgs_audio.text.markup import (
    check_speakable,
    is_speakable,
    pause_at_brackets,
    remove_sounds,
    sounds_to_tokens,
)
from higgs_audio.text.normalization import normalize
from higgs_audio.text.pace import count_phones, frame_bounds
from higgs_audio.text.pauses import Pauses, read_pauses
from higgs_audio.text.phonemes import remove_unreadable
from higgs_audio.text.utterances import MAX_CHARS, Utterance, read_utterances

SPEAKER = "SPEAKER0"  # in prompts: each utterance is generated in a conversation with one speaker
UTTERANCE_CHARS = "utterance_chars"  # in generation_config.json: the longest utterances that a model was trained on
WORD_CHARS = 1000  # maximum length of an utterance of one word, which is not divided
MAX_LISTED = 5  # words in a warning
SILENCE_FRAMES = 50  # number of silent frames that are encoded to find the codes of silence


class SpeechOptions(SamplingKwargs, total=False):
    """The keyword options of `HiggsAudio.generate` and `stream`; `SamplingOptions` documents those of `SamplingKwargs`.

    seed: equal seeds give equal audio on one machine; when None, every call gives a different result.
    max_seconds: limit on the duration of the audio. Each utterance also has its own limit: 1 second plus 0.12 seconds
        per phone, about twice the usual duration.
    scene: a description of where the speech is recorded, for models that were trained with scenes.
    pauses: seconds of silence after sentences, items, paragraphs, headings and turns: `Pauses`, or a mapping of its
        fields.
    """

    seed: int | None
    max_seconds: float | None
    scene: str | None
    pauses: Pauses | Mapping[str, float] | None


OPTION_NAMES = tuple(SpeechOptions.__annotations__)


@dataclass(frozen=True)
class Line:
    """What one speaker says before another speaks.

    Attributes:
        text: text of any length.
        voice: the voice; None if the model chooses one.
        speaker: who speaks; all lines of a speaker whose voice the model chooses have the same voice.
    """

    text: str
    voice: Voice | None
    speaker: str = SPEAKER


@dataclass(frozen=True)
class SpeechRequest:
    """The checked arguments of `HiggsAudio.generate`, `dialogue` or one of their streams.

    Attributes:
        utterances: the text, split and normalized; each utterance is generated separately.
        voices: the voice of each utterance; None if the model chooses one.
        speakers: the speaker of each utterance.
        scene: the scene description.
        seed: seed of the first utterance; utterance n after it has seed + n.
        max_frames: limit on the frames of all utterances together.
        sampling: sampling options.
        pauses: seconds of silence after each utterance but the last.
    """

    utterances: tuple[str, ...]
    voices: tuple[Voice | None, ...]
    speakers: tuple[str, ...]
    scene: str | None
    seed: int | None
    max_frames: int | None
    sampling: SamplingOptions
    pauses: tuple[float, ...]

    @property
    def is_parallel(self) -> bool:
        """Whether utterances can be generated at the same time.

        They depend on earlier ones if a speaker has no voice, because the first utterance then determines it, or if
        there is a limit on all of them together.
        """
        return None not in self.voices and self.max_frames is None


class RequestBuilder:
    """Checks calls and builds engine requests for one model. Thread-safe: one thread at a time uses the tokenizer.

    Args:
        model, processor: language model and processor of a checkpoint, with an audio tokenizer.
    """

    def __init__(self, model: HiggsAudioForConditionalGeneration, processor: HiggsAudioProcessor) -> None:
        assert processor.audio_tokenizer is not None
        self._model, self._processor = model, processor
        self._frame_rate = processor.audio_tokenizer.config.frame_rate
        self._is_phonemes = processor.text_frontend == "phonemes"
        self._utterance_chars = getattr(getattr(model, "generation_config", None), UTTERANCE_CHARS, None) or MAX_CHARS
        check_count(UTTERANCE_CHARS, self._utterance_chars, 20, WORD_CHARS, f"{MAX_CHARS} if it is not stated")
        self._lock = threading.Lock()

    def read_request(self, lines: Sequence[Line], options: Mapping[str, Any]) -> SpeechRequest:
        """Returns the request of a call. Checks its prompts, but does not render them; `build` does.

        Args:
            lines: one line for a text, several for a dialogue.
            options: see `SpeechOptions`.

        Raises:
            HiggsAudioError: as for `HiggsAudio.generate`.
        """
        if unknown := sorted(set(options) - set(OPTION_NAMES)):
            raise OptionError(f"no option {unknown[0]!r}; {nearest(unknown[0], OPTION_NAMES)}")
        sampling = {name: options[name] for name in SAMPLING_NAMES if name in options}
        rules = read_rules(self._model.config, getattr(self._model, "generation_config", None), sampling)
        pauses = read_pauses(options.get("pauses"))
        utterances, speaking, silences = zip(*self._read_lines(lines, pauses), strict=True)
        seed = options.get("seed")
        if seed is not None:
            check_count("seed", seed, 0, 2**63 - len(utterances), "None for a different result with every call")
        request = SpeechRequest(
            utterances,
            tuple(line.voice for line in speaking),
            tuple(line.speaker for line in speaking),
            options.get("scene"),
            seed,
            self._num_frames(options.get("max_seconds")),
            rules.sampling,
            silences[:-1],
        )
        with self._lock:
            self._check_prompts(request)
        return request

    def _read_lines(self, lines: Sequence[Line], pauses: Pauses) -> list[tuple[str, Line, float]]:
        """Returns each utterance of the lines, normalized, with its line and the seconds of pause after it."""
        parts = [self._split(line.text) for line in lines]
        readable = iter(self._normalize([part.text for split in parts for part in split]))
        read = []
        for line, split in zip(lines, parts, strict=True):
            spoken = [(text, line, pauses.after(part)) for part in split if is_speakable(text := next(readable))]
            if not spoken:
                raise TextError(
                    f"{line.text!r:.60} has nothing that this model speaks; give at least one letter or digit"
                )
            if split[-1].pause is None:
                spoken[-1] = (*spoken[-1][:2], pauses.turn)
            read += spoken
        return read

    def _split(self, text: str) -> list[Utterance]:
        parts = read_utterances(check_speakable(text), self._utterance_chars)
        _check_words(parts)
        for part in parts:
            check_speakable(part.text)
        return parts

    def build(
        self,
        request: SpeechRequest,
        number: int,
        previous: tuple[Turn, ...] = (),
        frames_left: int | None = None,
    ) -> engine.Request:
        """Renders the prompt of an utterance and returns its engine request.

        Args:
            request: from `read_request`.
            number: index of the utterance.
            previous: generated turns that the prompt includes, which determine the voice.
            frames_left: frames left of the limit of the whole request; None for no limit.
        """
        with self._lock:
            (prompt,) = self._processor.encode_conversations([_messages(request, number, previous)], force_audio=True)
            min_frames, max_frames = self._frame_bounds(request.utterances[number], request.voices[number])
        max_frames = max_frames if frames_left is None else min(frames_left, max_frames)
        is_guided = request.sampling.text_guidance_scale != 1
        return engine.Request(
            input_ids=prompt.input_ids,
            columns=prompt.columns,
            sampling=request.sampling,
            seed=read_seeds(None if request.seed is None else request.seed + number, 1)[0],
            min_frames=min(min_frames, max_frames),
            max_frames=max_frames,
            negative_ids=self._processor.mask_last_text(prompt) if is_guided else None,
            prefix=prompt.last_user_turn.start,  # system turn and reference, which other requests are likely to share
            detect_loops=True,
        )

    def _check_prompts(self, request: SpeechRequest) -> None:
        """Checks scene and voice with the first utterance of each speaker, then the other texts, without rendering."""
        first = {speaker: number for number, speaker in reversed(list(enumerate(request.speakers)))}
        for number, utterance in enumerate(request.utterances):
            is_first = number in first.values()
            messages = _messages(request, number) if is_first else [{"role": "user", "content": utterance}]
            self._processor.check_conversation(messages)

    def _normalize(self, utterances: Sequence[str]) -> list[str]:
        """Normalizes utterances. Sound tags become tokens; a model whose input is phonemes has none."""
        if not self._is_phonemes:
            return [sounds_to_tokens(normalize(utterance)) for utterance in utterances]
        readable = [remove_unreadable(remove_sounds(utterance)) for utterance in utterances]
        if words := list(dict.fromkeys(word for _, removed in readable for word in removed)):
            listed = ", ".join(words[:MAX_LISTED]) + (", ..." if len(words) > MAX_LISTED else "")
            warnings.warn(f"this model reads English; words of other scripts are left out: {listed}", stacklevel=4)
        return [normalize(pause_at_brackets(utterance)) for utterance, _ in readable]

    def _num_frames(self, seconds: float | None) -> int | None:
        """Returns the number of whole frames in `seconds`; None for None."""
        if seconds is None:
            return None
        rate = self._frame_rate
        if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 1 / rate <= seconds < float("inf"):
            raise OptionError(f"max_seconds={seconds!r}; allowed: None, or at least one frame, {1 / rate} seconds")
        return int(seconds * rate + 1e-6)

    def _frame_bounds(self, utterance: str, voice: Voice | None) -> tuple[int, int]:
        """Returns the minimum and maximum number of frames of an utterance."""
        pace = 0.0
        if voice is not None and voice.codes is not None:
            num_phones = count_phones(voice.transcript or "", self._is_phonemes)
            pace = voice.codes.shape[1] / self._frame_rate / max(1, num_phones)
        return frame_bounds(count_phones(utterance, self._is_phonemes), self._frame_rate, pace)


def _check_words(utterances: Sequence[Utterance]) -> None:
    """Raises TextError for a word that is longer than several utterances, before it is read: that takes minutes."""
    for utterance in utterances:
        if len(utterance.text) > WORD_CHARS:
            raise TextError(
                f"a word of {len(utterance.text)} characters: {utterance.text!r:.40}; allowed: {WORD_CHARS}. Separate "
                "words by spaces"
            )


def _messages(request: SpeechRequest, number: int, previous: Sequence[Turn] = ()) -> list[dict[str, Any]]:
    """Returns the chat messages for the generation of an utterance."""
    turn, voice = Turn(request.utterances[number], SPEAKER), request.voices[number]
    return to_messages(compose([turn], voice, scene=request.scene, previous=previous))


def silence_codes(codec: HiggsAudioTokenizer) -> frozenset[int]:
    """Returns the codes of codebook 0 that represent silence."""
    silence = torch.zeros(1, 1, SILENCE_FRAMES * codec.config.hop_length, device=codec.device)
    codes = codec.encode(silence).audio_codes
    assert codes is not None
    return frozenset(codes[0, 0].tolist())
