"""HiggsAudio: text in, speech out. Where processor, engine and audio tokenizer meet; glue only."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch

from higgs_audio import checkpoint, quantize
from higgs_audio.audio import Waveform, from_array, read
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.device import read_device
from higgs_audio.engine import Answer, Engine
from higgs_audio.errors import (
    AudioError,
    CheckpointError,
    HiggsAudioError,
    OptionError,
    VoiceError,
    nearest,
)
from higgs_audio.model import HiggsAudioForConditionalGeneration
from higgs_audio.offload import offload_text as keep_text_home
from higgs_audio.pace import count_phones, frame_bounds
from higgs_audio.processor import HiggsAudioProcessor
from higgs_audio.prompt import Turn, Voice, compose, to_messages
from higgs_audio.rules import read_rules
from higgs_audio.sampling import SamplingOptions, check_count
from higgs_audio.speaking import Chunk, Said, Speech, request_of, silent_codes, sound_of
from higgs_audio.text import check_speakable, mark_sounds, normalize, split_utterances

SPEAKER = "SPEAKER0"  # the only one
SAMPLING_OPTIONS = tuple(option.name for option in fields(SamplingOptions))

MAX_REFERENCE_SECONDS = 30.0  # a longer one makes every step slower and the voice no better
UTTERANCE_CHARS = 110  # of one generation: nano has learned nothing longer


@dataclass(frozen=True)
class SpeechRequest:
    """A call of `generate` or `stream`, checked; `max_frames` are of all utterances together."""

    utterances: tuple[str, ...]
    voice: Voice | None
    scene: str | None
    seed: int | None
    max_frames: int | None
    sampling: Mapping[str, Any]


class HiggsAudio:
    """A checkpoint that speaks.

    >>> tts = HiggsAudio.from_pretrained("nano")  # doctest: +SKIP
    >>> speech = tts.generate("The sun rises in the east.", voice="ava", seed=1)  # doctest: +SKIP
    >>> len(speech.waveform.samples) == 960 * speech.codes.shape[1]  # doctest: +SKIP
    True

    Args:
        model: the language model, in eval mode.
        processor: with its audio tokenizer.
        voices: name -> {"profile": text that the model knows the voice by, "description": for people}; the first is
            the default. Without any, the model chooses a voice.

    Raises:
        OptionError: something else. CheckpointError: a processor without audio tokenizer.
    """

    def __init__(
        self,
        model: HiggsAudioForConditionalGeneration,
        processor: HiggsAudioProcessor,
        voices: dict[str, dict[str, str]] | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module) or not isinstance(processor, HiggsAudioProcessor):
            given = f"{type(model).__name__} and {type(processor).__name__}"
            raise OptionError(f"HiggsAudio got {given}; give a HiggsAudioForConditionalGeneration and its processor")
        if not isinstance(voices, (Mapping, NoneType)) or not all(
            isinstance(entry, Mapping) and isinstance(entry.get("profile"), str) for entry in (voices or {}).values()
        ):
            raise OptionError(f'voices={voices!r:.60}; give None, or a dict like {{"ava": {{"profile": "Ava"}}}}')
        if processor.audio_tokenizer is None:
            raise CheckpointError("the processor has no audio tokenizer: load it from a checkpoint that has one")
        self.model = model
        self.processor = processor
        self._profiles = voices or {}
        self._writing = threading.Lock()  # a tokenizer serves one thread at a time
        self._making = threading.Lock()
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """What runs its requests, made when something is first said; put another here for other limits.

        Where the weights of the model are changed afterwards, `engine.forget()`.
        """
        with self._making:  # two threads that speak first must not have one each
            if self._engine is None:
                self._engine = Engine(self.model, silent=silent_codes(self.codec))
            return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "nano",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        codec_device: str | torch.device | None = None,
        weights: str | None = None,
        offload_text: bool = False,
    ) -> "HiggsAudio":
        """Loads a checkpoint. What a small machine can do with the last three is in docs/small-machines.md.

        Args:
            name: as in `checkpoint.resolve`: "nano", a folder, or a hub repository.
            device: "cpu", "cuda", ...; when None a GPU if torch finds one.
            dtype: of the language model; when None float32 on a CPU, where it is faster than bfloat16, and bfloat16
                elsewhere. The audio tokenizer is always float32.
            codec_device: of the audio tokenizer; when None that of the language model.
            weights: "int8" or "nf4" (4 bits) quantises the matrices of the decoder layers while they are loaded.
            offload_text: leaves the weights that only text needs in host memory. Changes nothing on a CPU, where
                they are.

        Raises:
            CheckpointError: no such checkpoint, or files that do not fit.
            OptionError: no such device or weights; weights for a checkpoint that was saved quantised; a model whose
                text weights audio needs too.
            MissingExtraError: torchao (int8) or bitsandbytes (nf4) is not installed.
        """
        place = read_device(device)
        codec_place = place if codec_device is None else read_device(codec_device, "codec_device")
        folder = checkpoint.resolve(name)
        dtype = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
        model = HiggsAudioForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, **_weight_options(folder, weights, dtype)
        )
        if offload_text and place.type != "cpu":
            keep_text_home(model, place)
        else:
            model.to(place)
        return cls(model, _load_processor(folder, codec_place), checkpoint.read_voices(folder))

    @property
    def codec(self) -> HiggsAudioTokenizer:
        """The audio tokenizer."""
        assert self.processor.audio_tokenizer is not None
        return self.processor.audio_tokenizer

    @property
    def sample_rate(self) -> int:
        """Of everything it says, in Hz: 24000."""
        return self.processor.sampling_rate

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices that the checkpoint brings; the first is the default."""
        return tuple(self._profiles)

    def voice(self, source: str | Path | bytes | Waveform, transcript: str | None = None) -> Voice:
        """A voice by name, or that of a recording.

        Args:
            source: one of `voices`; or a recording of at most 30 seconds, of any format, rate and number of channels,
                as a path, the bytes of a file, or a `Waveform`.
            transcript: what is said in the recording, word for word.

        Raises:
            VoiceError: no such voice, a recording without transcript, or a name with one.
            AudioError: a recording that is missing, unreadable, empty, shorter than 5 ms or longer than 30 s.
            TextError: a transcript with nothing speakable, or with a special token in it.
        """
        if isinstance(source, str) and not _is_recording(source, self.voices):
            if transcript is not None:
                raise VoiceError(f"{source!r} names a voice, which takes no transcript; leave it out, or give a path")
            return self._named(source)
        if transcript is None:
            raise VoiceError("a recording needs its transcript: pass what is said in it, word for word, as transcript=")
        said = check_speakable(transcript).strip()
        return Voice(transcript=said, codes=self.processor.encode_audio(_read_reference(source)))

    def generate(
        self,
        text: str,
        voice: Voice | str | None = None,
        *,
        seed: int | None = None,
        max_seconds: float | None = None,
        scene: str | None = None,
        progress: Callable[[float], None] | None = None,
        **sampling: Any,
    ) -> Speech:
        """Speaks a text of any length: the concatenation of `stream`.

        Args:
            text: what to say.
            voice: a name of `voices`, or a `Voice` that `voice()` made; the default voice when None.
            seed: equal seeds give equal sound on one machine; when None no two calls are equal.
            max_seconds: at most so much sound in all. Beside that, no utterance may last longer than 1 second and
                0.12 for each phone, about twice of what it should.
            scene: where the speech is recorded, in words, for models that know scenes.
            progress: called with the seconds of sound made so far.
            **sampling: `temperature`, `top_k`, `top_p` and the other fields of `SamplingOptions`; where left out, the
                checkpoint's own.

        Raises:
            TextError: a text that is empty, has nothing speakable, or holds a special token.
            VoiceError: no such voice.
            OptionError: an option that does not exist, or a value outside its range.
            PromptError: a scene with a special token in it. CodesError: a voice with impossible codes.
        """
        request = self._check(text, voice, seed, max_seconds, scene, sampling)
        if progress is not None and not callable(progress):
            raise OptionError(f"progress={progress!r:.60}; give a function of seconds, or None")
        said = Said(self.sample_rate)
        for chunk in self._speak(request):
            said.add(chunk)
            if progress is not None:
                progress(said.seconds)
        return said.speech()

    def generate_batch(
        self,
        texts: Sequence[str],
        voice: Voice | str | None = None,
        *,
        seed: int | None = None,
        max_seconds: float | None = None,
        scene: str | None = None,
        **sampling: Any,
    ) -> list[Speech]:
        """Speaks several texts at once: each as `generate` would with the same arguments, in a fraction of the time.

        Raises what `generate` raises, for the first text with an error; before anything is said where it can be told.
        """
        requests = [self._check(text, voice, seed, max_seconds, scene, sampling) for text in texts]
        spoken = self.speak_together(requests)
        for result in spoken:
            if isinstance(result, HiggsAudioError):
                raise result
        return [result for result in spoken if isinstance(result, Speech)]

    async def generate_async(self, text: str, voice: Voice | str | None = None, **options: Any) -> Speech:
        """`generate` for asyncio; what is asked for at once is spoken together."""
        return await asyncio.to_thread(self.generate, text, voice, **options)

    async def stream_async(
        self, text: str, voice: Voice | str | None = None, **options: Any
    ) -> AsyncIterator[Waveform]:
        """`stream` for asyncio; breaking off ends the work."""
        chunks = await asyncio.to_thread(self.stream, text, voice, **options)
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        finally:
            await asyncio.to_thread(chunks.close)

    def stream(
        self,
        text: str,
        voice: Voice | str | None = None,
        *,
        seed: int | None = None,
        max_seconds: float | None = None,
        scene: str | None = None,
        **sampling: Any,
    ) -> Generator[Waveform, None, None]:
        """Speaks a text in chunks, each as soon as it is certain. Arguments and errors are those of `generate`.

        Everything is checked before the first chunk is asked for; closing the iterator ends the work.
        """
        request = self._check(text, voice, seed, max_seconds, scene, sampling)
        return self._waveforms(request)

    def _waveforms(self, request: SpeechRequest) -> Generator[Waveform, None, None]:
        for chunk in self._speak(request):
            if len(chunk.samples):
                yield Waveform(chunk.samples, self.sample_rate)

    # What a call asks for.

    def request(self, text: str, voice: Voice | str | None, options: Mapping[str, Any]) -> SpeechRequest:
        """What `generate` would be asked with these arguments, checked; see `speak_together`. Raises as it does."""
        named = {name: options.get(name) for name in ("seed", "max_seconds", "scene")}
        return self._check(text, voice, **named, sampling={k: v for k, v in options.items() if k not in named})

    def _check(
        self,
        text: str,
        voice: Voice | str | None,
        seed: int | None,
        max_seconds: float | None,
        scene: str | None,
        sampling: Mapping[str, Any],
    ) -> SpeechRequest:
        if unknown := sorted(set(sampling) - set(SAMPLING_OPTIONS)):
            raise OptionError(f"no option {unknown[0]!r}; {nearest(unknown[0], SAMPLING_OPTIONS)}")
        read_rules(self.model.config, getattr(self.model, "generation_config", None), sampling)
        utterances = tuple(self._write(part) for part in split_utterances(check_speakable(text), UTTERANCE_CHARS))
        if seed is not None:
            check_count("seed", seed, 0, 2**63 - len(utterances), "None for another sound with every call")
        chosen = self._default() if voice is None else voice if isinstance(voice, Voice) else self._named(str(voice))
        request = SpeechRequest(utterances, chosen, scene, seed, self._frames(max_seconds), sampling)
        for number in range(len(utterances)):
            self._inputs(request, number, (), None)  # what cannot be said is refused before the first word is
        return request

    def _write(self, utterance: str) -> str:
        """An utterance as the model reads it best; sounds in brackets are tokens where it reads written text."""
        tidy = normalize(utterance)
        return tidy if self.processor.text_frontend == "phonemes" else mark_sounds(tidy)

    def _named(self, name: str) -> Voice:
        if name not in self._profiles:
            raise VoiceError(
                f"no voice {name!r}; {nearest(name, self.voices)}. A recording and its transcript make another: "
                "voice(path, transcript)"
            )
        return Voice(name=name, profile=self._profiles[name]["profile"])

    def _default(self) -> Voice | None:
        return self._named(self.voices[0]) if self.voices else None

    def _frames(self, seconds: float | None) -> int | None:
        """Whole frames in so many seconds."""
        if seconds is None:
            return None
        rate = self.codec.config.frame_rate
        if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 1 / rate <= seconds < float("inf"):
            raise OptionError(f"max_seconds={seconds!r}; allowed: None, or at least one frame, {1 / rate} seconds")
        return int(seconds * rate + 1e-6)

    # The work.

    def _speak(self, request: SpeechRequest, asked: Sequence[Answer] = ()) -> Iterator[Chunk]:
        """All utterances, one after another, in one voice. The first of them may have been `asked` for before; then
        nobody waits for a first chunk.

        Each is asked for in the voice of the request. Where there is none, the first utterance comes before all
        others as a turn already spoken, or every one would be spoken by somebody else.
        """
        spoken: tuple[Turn, ...] = ()
        left = request.max_frames
        for number, utterance in enumerate(request.utterances):
            if left == 0:
                yield Chunk(np.zeros(0, np.float32), torch.zeros(self.codec.config.num_codebooks, 0).long(), "length")
                return
            answer = asked[number] if number < len(asked) else self._ask(request, number, spoken, left)
            codes = []
            try:
                for chunk in sound_of(answer, self.codec, soon=not asked):
                    codes.append(chunk.codes)
                    yield chunk
            finally:
                answer.cancel()
            whole = torch.cat(codes, dim=1)  # [K, F]
            left = None if left is None else left - whole.shape[1]
            if request.voice is None and not spoken:
                spoken = (Turn(utterance, SPEAKER, whole.numpy()),)

    def speak_together(self, requests: Sequence[SpeechRequest]) -> list[Speech | HiggsAudioError]:
        """Every request, or what it failed with: all that can be is asked for first, then heard in turns.

        Raises QueueFullError for more requests than the engine lets wait.
        """
        asked = [self._ask_ahead(request) for request in requests]
        said, errors = [Said(self.sample_rate) for _ in requests], {}
        speakers = {n: self._speak(request, asked[n]) for n, request in enumerate(requests)}
        try:
            while speakers:
                for number, speaker in list(speakers.items()):
                    try:
                        chunk = next(speaker, None)
                    except HiggsAudioError as error:
                        errors[number], chunk = error, None
                    if chunk is None:
                        del speakers[number]
                    else:
                        said[number].add(chunk)
        finally:
            for answer in itertools.chain(*asked):  # nothing where they are done
                answer.cancel()
        return [errors.get(number) or one.speech() for number, one in enumerate(said)]

    def _ask_ahead(self, request: SpeechRequest) -> list[Answer]:
        """Asks for all utterances that do not depend on others: without a voice or with a limit, the first."""
        free = request.voice is not None and request.max_frames is None
        count = len(request.utterances) if free else 1
        return [self._ask(request, number, (), request.max_frames) for number in range(count)]

    def _ask(self, request: SpeechRequest, number: int, spoken: tuple[Turn, ...], left: int | None) -> Answer:
        """Asks the engine for one utterance of at most `left` frames."""
        inputs = self._inputs(request, number, spoken, left)
        return self.engine.submit(request_of(self.model, inputs))

    def _inputs(
        self, request: SpeechRequest, number: int, spoken: tuple[Turn, ...], left: int | None
    ) -> dict[str, Any]:
        """Arguments of `generate.stream` for one utterance of at most `left` frames."""
        utterance = request.utterances[number]
        prompt = compose([Turn(utterance, SPEAKER)], request.voice, scene=request.scene, spoken=spoken)
        with self._writing:
            features = self.processor.apply_chat_template(to_messages(prompt), force_audio=True, output_labels=False)
        shortest, longest = self._bounds(utterance, request.voice)
        longest = longest if left is None else min(left, longest)
        return {
            **features.to(self.model.device),
            **request.sampling,
            "tokenizer": self.processor.tokenizer,
            "min_frames": min(shortest, longest),
            "max_frames": longest,
            "max_new_tokens": longest + self.model.config.audio_num_codebooks + 2,  # the delay and <|audio_eos|>
            "eos_token_id": self.model.config.audio_eos_token_id,  # an utterance is one segment
            "seed": None if request.seed is None else request.seed + number,
        }

    def _bounds(self, utterance: str, voice: Voice | None) -> tuple[int, int]:
        """Least and most frames of an utterance."""
        rate, pace = self.codec.config.frame_rate, 0.0
        phonemes = self.processor.text_frontend == "phonemes"
        if voice is not None and voice.codes is not None:
            pace = voice.codes.shape[1] / rate / max(1, count_phones(voice.transcript or "", phonemes))
        return frame_bounds(count_phones(utterance, phonemes), rate, pace)


def _read_reference(source: str | Path | bytes | Waveform) -> Waveform:
    """The recording of a voice, not longer than it may be."""
    if not isinstance(source, Waveform):
        return read(source, max_seconds=MAX_REFERENCE_SECONDS)
    if source.seconds > MAX_REFERENCE_SECONDS:
        raise AudioError(f"the recording lasts {source.seconds:.1f} seconds; give at most {MAX_REFERENCE_SECONDS:g}")
    return from_array(source.samples, source.sample_rate)


def _is_recording(source: str, voices: tuple[str, ...]) -> bool:
    """Whether a string is a path, and not the name of a voice (well or badly spelled)."""
    path = Path(source)
    return source not in voices and (len(path.parts) > 1 or bool(path.suffix) or path.is_file())


def _weight_options(folder: Path, weights: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """What loading has to know of quantised weights: those asked for, or those the checkpoint was saved with."""
    saved = quantize.saved_method(folder)
    if weights is not None and saved is not None:
        raise OptionError(f"weights={weights!r}: {folder} was saved quantised by {saved}; leave weights out")
    if weights is None and saved is None:
        return {}
    # Quantised in host memory, then moved: transformers would otherwise pick a GPU, with or without room for it.
    asked = {} if weights is None else {"quantization_config": quantize.quantization_config(weights, dtype)}
    return {**asked, "device_map": {"": "cpu"}}


def load_codec(name: str | Path, device: str | torch.device | None = None) -> HiggsAudioTokenizer:
    """The audio tokenizer of a checkpoint, or one in a folder or repository of its own.

    Args:
        name, device: as in `HiggsAudio.from_pretrained`.

    Raises:
        CheckpointError: no such checkpoint, or files that do not fit.
        OptionError: no such device.
    """
    return HiggsAudioTokenizer.from_pretrained(name, device_map=read_device(device))


def _load_processor(folder: Path, place: torch.device) -> HiggsAudioProcessor:
    try:
        return HiggsAudioProcessor.from_pretrained(folder, device_map=place)
    except HiggsAudioError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"the tokenizer or processor files of {folder} do not load: {error}") from error
