"""A text as what the engine is asked for: utterances, each a prompt with its limits."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import torch

from higgs_audio import engine
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.engine import Request
from higgs_audio.errors import OptionError, check_count, nearest
from higgs_audio.generation.guidance import last_text, negative_prompts
from higgs_audio.generation.rules import read_rules, read_seeds
from higgs_audio.generation.sampling import SamplingOptions
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Turn, Voice, compose, to_messages
from higgs_audio.text.pace import count_phones, frame_bounds
from higgs_audio.text.utterances import split_utterances
from higgs_audio.text.written import check_speakable, mark_sounds, normalize

SPEAKER = "SPEAKER0"  # the only one
OWN_OPTIONS = ("seed", "max_seconds", "scene")
SAMPLING_OPTIONS = tuple(option.name for option in fields(SamplingOptions))
UTTERANCE_CHARS = 110  # of one generation: nano has learned nothing longer


@dataclass(frozen=True)
class SpeechRequest:
    """A call of `HiggsAudio.generate` or `stream`, checked; `max_frames` are of all utterances together."""

    utterances: tuple[str, ...]
    voice: Voice | None
    scene: str | None
    seed: int | None
    max_frames: int | None
    sampling: Mapping[str, Any]

    @property
    def is_free(self) -> bool:
        """Whether no utterance depends on those before: without a voice they set it, and a limit is of all together."""
        return self.voice is not None and self.max_frames is None


class RequestBuilder:
    """Writes for one model; from any thread, one call at a time: a tokenizer serves one thread.

    Args:
        model, processor: of a checkpoint, the processor with its audio tokenizer.
    """

    def __init__(self, model: HiggsAudioForConditionalGeneration, processor: HiggsAudioProcessor) -> None:
        assert processor.audio_tokenizer is not None
        self._model, self._processor = model, processor
        self._frame_rate = processor.audio_tokenizer.config.frame_rate
        self._is_phonemes = processor.text_frontend == "phonemes"
        self._lock = threading.Lock()

    def check(self, text: str, voice: Voice | None, options: Mapping[str, Any]) -> SpeechRequest:
        """What a call of `generate` asks for.

        Args:
            text, voice: to be spoken.
            options: `seed`, `max_seconds`, `scene` and fields of `SamplingOptions`, where given.

        Raises what `HiggsAudio.generate` does.
        """
        sampling = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
        if unknown := sorted(set(sampling) - set(SAMPLING_OPTIONS)):
            raise OptionError(f"no option {unknown[0]!r}; {nearest(unknown[0], SAMPLING_OPTIONS)}")
        read_rules(self._model.config, getattr(self._model, "generation_config", None), sampling)
        with self._lock:
            utterances = tuple(self._tidy(part) for part in split_utterances(check_speakable(text), UTTERANCE_CHARS))
        seed = options.get("seed")
        if seed is not None:
            check_count("seed", seed, 0, 2**63 - len(utterances), "None for another sound with every call")
        limit = self._frames(options.get("max_seconds"))
        request = SpeechRequest(utterances, voice, options.get("scene"), seed, limit, sampling)
        for number in range(len(utterances)):
            self._inputs(request, number, (), None)  # what cannot be said is refused before the first word is
        return request

    def write(
        self, request: SpeechRequest, number: int, spoken: tuple[Turn, ...] = (), left: int | None = None
    ) -> engine.Request:
        """What the engine is asked for one utterance, of at most `left` frames, after turns that were `spoken`."""
        inputs = self._inputs(request, number, spoken, left)
        with self._lock:
            return engine_request(self._model, inputs)

    def _inputs(
        self, request: SpeechRequest, number: int, spoken: tuple[Turn, ...], left: int | None
    ) -> dict[str, Any]:
        """Arguments of `generate.stream`."""
        utterance = request.utterances[number]
        prompt = compose([Turn(utterance, SPEAKER)], request.voice, scene=request.scene, spoken=spoken)
        with self._lock:
            features = self._processor.apply_chat_template(to_messages(prompt), force_audio=True, output_labels=False)
            shortest, longest = self._bounds(utterance, request.voice)
        longest = longest if left is None else min(left, longest)
        config = self._model.config
        return {
            **features.to(self._model.device),
            **request.sampling,
            "tokenizer": self._processor.tokenizer,
            "min_frames": min(shortest, longest),
            "max_frames": longest,
            "max_new_tokens": longest + config.audio_num_codebooks + 2,  # the delay and <|audio_eos|>
            "eos_token_id": config.audio_eos_token_id,  # an utterance is one segment
            "seed": None if request.seed is None else request.seed + number,
        }

    def _tidy(self, utterance: str) -> str:
        """An utterance as the model reads it best; sounds in brackets are tokens where it reads written text."""
        tidy = normalize(utterance)
        return tidy if self._is_phonemes else mark_sounds(tidy)

    def _frames(self, seconds: float | None) -> int | None:
        """Whole frames in so many seconds."""
        if seconds is None:
            return None
        rate = self._frame_rate
        if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 1 / rate <= seconds < float("inf"):
            raise OptionError(f"max_seconds={seconds!r}; allowed: None, or at least one frame, {1 / rate} seconds")
        return int(seconds * rate + 1e-6)

    def _bounds(self, utterance: str, voice: Voice | None) -> tuple[int, int]:
        """Least and most frames of an utterance."""
        pace = 0.0
        if voice is not None and voice.codes is not None:
            said = count_phones(voice.transcript or "", self._is_phonemes)
            pace = voice.codes.shape[1] / self._frame_rate / max(1, said)
        return frame_bounds(count_phones(utterance, self._is_phonemes), self._frame_rate, pace)


SILENCE_FRAMES = 50  # of zeros, encoded to learn which codes stand for silence


def engine_request(model: HiggsAudioForConditionalGeneration, options: Mapping[str, Any]) -> Request:
    """The engine's request for what `generate.stream` would be asked with these options, for one prompt.

    What precedes the text is likely to be asked for again: a system message, a scene, the reference of a voice.
    """
    ids = options["input_ids"]  # [1, T]
    names = ("input_ids", "attention_mask", "audio_input_ids", "audio_input_ids_mask")
    rules = read_rules(
        model.config,
        getattr(model, "generation_config", None),
        {name: value for name, value in options.items() if name not in names},
    )
    unread = negative_prompts(ids, rules.sampling.text_guidance_scale, options)
    sampling = rules.sampling if unread is not None else replace(rules.sampling, text_guidance_scale=1.0)
    columns = options.get("audio_input_ids")  # [1, F, K]
    assert rules.max_frames is not None
    return Request(
        input_ids=ids[0].cpu(),
        columns=torch.zeros(0, model.config.audio_num_codebooks).long() if columns is None else columns[0].cpu(),
        sampling=sampling,
        seed=read_seeds(options.get("seed"), 1)[0],
        min_frames=rules.min_frames,
        max_frames=rules.max_frames,
        negative_ids=None if unread is None else unread[0].cpu(),
        prefix=last_text(ids[0], rules.tokenizer)[0],
        guarded=True,
    )


def silence_codes(codec: HiggsAudioTokenizer) -> frozenset[int]:
    """The codes of codebook 0 that stand for silence."""
    silence = torch.zeros(1, 1, SILENCE_FRAMES * codec.config.hop_length, device=codec.device)
    codes = codec.encode(silence).audio_codes
    assert codes is not None
    return frozenset(codes[0, 0].tolist())
