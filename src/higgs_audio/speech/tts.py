"""HiggsAudio: text to speech. Connects processor, engine and audio tokenizer."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self, Unpack

from higgs_audio.audio.waveform import Waveform
from higgs_audio.checkpoint import Checkpoint, open_checkpoint
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.device import resolve_device
from higgs_audio.engine import Engine
from higgs_audio.errors import CheckpointError, HiggsAudioError, OptionError, TextError
from higgs_audio.model import offload, quantize
from higgs_audio.model.load_options import LoadOptions
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import Voice
from higgs_audio.speech.decode_queue import DecodeQueue
from higgs_audio.speech.dialogue import Cast, Script, cast_script, read_script
from higgs_audio.speech.request import Line, RequestBuilder, SpeechOptions, SpeechRequest, silence_codes
from higgs_audio.speech.result import LOW_LATENCY_FRAMES, Chunk, Speech, SpeechBuilder
from higgs_audio.speech.stream import UTTERANCES_AHEAD, SpeechStream, stream_many, stream_speech
from higgs_audio.speech.voices import VoiceLibrary, read_voices


class HiggsAudio:
    """Text to speech with one checkpoint.

    >>> tts = HiggsAudio.from_pretrained("nano")  # doctest: +SKIP
    >>> speech = tts.generate("The sun rises in the east.", voice="ava", seed=1)  # doctest: +SKIP
    >>> len(speech.waveform.samples) == 960 * speech.codes.shape[1]  # doctest: +SKIP
    True

    Args:
        model: the language model, in eval mode.
        processor: the processor, with its audio tokenizer.
        voices: name -> {"profile": the text that identifies the voice to the model, "description": for users}; the
            first is the default. Without voices, the model chooses one.

    Raises:
        OptionError: an argument of another type.
        CheckpointError: a processor without audio tokenizer.
    """

    def __init__(
        self,
        model: HiggsAudioForConditionalGeneration,
        processor: HiggsAudioProcessor,
        voices: dict[str, dict[str, str]] | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module) or not isinstance(processor, HiggsAudioProcessor):
            types = f"{type(model).__name__} and {type(processor).__name__}"
            raise OptionError(f"HiggsAudio got {types}; give a HiggsAudioForConditionalGeneration and its processor")
        self._voices = VoiceLibrary(voices, processor)
        if processor.audio_tokenizer is None:
            raise CheckpointError("the processor has no audio tokenizer; load it from a checkpoint with one")
        self.model = model
        self.processor = processor
        self._builder, self._queue = RequestBuilder(model, processor), DecodeQueue(processor.audio_tokenizer)
        self._engine: Engine | None = None
        self._engine_lock = threading.Lock()

    @property
    def engine(self) -> Engine:
        """The engine that runs the requests, created on first use; assign another engine to change its limits.

        Call `engine.reset_caches()` after changing the weights of the model.
        """
        with self._engine_lock:  # concurrent first calls share one engine
            if self._engine is None:
                self._engine = Engine(self.model, silent=silence_codes(self.codec))
            return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | Checkpoint = "nano",
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        codec_device: str | torch.device | None = None,
        weights: str | None = None,
        offload_text: bool = False,
    ) -> Self:
        """Loads a checkpoint. docs/small-machines.md shows the use of the last three options.

        Args:
            name: as in `checkpoint.open_checkpoint`: "nano", a folder, or a hub repository.
            device: "cpu", "cuda", ...; when None, a GPU if torch finds one.
            dtype: dtype of the language model; when None, float32 on a CPU, where it is faster than bfloat16, and
                bfloat16 elsewhere. The audio tokenizer is always float32.
            codec_device: device of the audio tokenizer; when None, the device of the language model.
            weights: "int8" or "nf4" (4 bits) quantizes the matrices of the decoder layers while they are loaded.
            offload_text: whether to keep the weights that only text uses in host memory. No effect on a CPU.

        Raises:
            CheckpointError: no such checkpoint, or invalid files.
            OptionError: no such device or weights; weights for a checkpoint that was saved quantized; offload_text for
                a model whose audio uses the text weights too.
            MissingExtraError: torchao (int8) or bitsandbytes (nf4) is not installed.
        """
        model_device = resolve_device(device)
        processor_device = model_device if codec_device is None else resolve_device(codec_device, "codec_device")
        checkpoint = open_checkpoint(name)
        dtype = dtype or (torch.float32 if model_device.type == "cpu" else torch.bfloat16)
        options = _load_options(checkpoint, weights, dtype)
        model = HiggsAudioForConditionalGeneration.from_pretrained(checkpoint, **options)
        if offload_text and model_device.type != "cpu":
            offload.offload_text(model, model_device)
        else:
            model.to(model_device)
        return cls(model, _load_processor(checkpoint, processor_device), read_voices(checkpoint))

    @property
    def codec(self) -> HiggsAudioTokenizer:
        """The audio tokenizer."""
        assert self.processor.audio_tokenizer is not None
        return self.processor.audio_tokenizer

    @property
    def sample_rate(self) -> int:
        """Samples per second of generated speech: 24000."""
        return self.processor.sampling_rate

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices of the checkpoint; the first is the default."""
        return self._voices.names

    def voice(self, source: str | Path | bytes | Waveform, transcript: str | None = None) -> Voice:
        """Returns a named voice, or the voice of a recording.

        Args:
            source: one of `voices`; or a recording of at most 30 seconds, of any format, rate and number of channels,
                as a path, the bytes of a file, or a `Waveform`.
            transcript: the text of the recording, word for word.

        Raises:
            VoiceError: no such voice, a recording without transcript, or a named voice with a transcript.
            AudioError: a recording that is missing, unreadable, empty, shorter than 5 ms or longer than 30 s.
            TextError: a transcript that contains nothing speakable, or a special token.
        """
        return self._voices.load(source, transcript)

    def generate(
        self,
        text: str,
        voice: Voice | str | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """Generates the speech of a text of any length: the concatenation of `stream`.

        Args:
            text: the text to speak. Markdown, HTML and SSML are read without their marks; their structure is heard as
                pauses, see `text.document`.
            voice: a name of `voices`, or a `Voice` from `voice()`; the default voice when None.
            progress: called with the seconds of audio generated so far.
            **options: `seed`, `max_seconds`, `scene` and `pauses`, which `SpeechOptions` documents; `temperature`,
                `top_k`, `top_p` and the other fields of `SamplingOptions`, which documents them. Omitted sampling
                options have the checkpoint's values.

        Raises:
            TextError: a text that is empty or contains nothing speakable, or a special token.
            VoiceError: no such voice.
            OptionError: an option that does not exist, or a value outside its range.
            PromptError: a scene with a special token.
            CodesError: a voice with invalid codes.
            QueueFullError: too many requests are waiting.
            EngineError, NumericsError: the generation failed.
        """
        return self._collect(self._open_checked(self.request(text, voice, options), progress), progress)

    def _open_checked(self, request: SpeechRequest, progress: Callable[[float], None] | None) -> SpeechStream:
        """Returns the stream of a whole request."""
        if progress is not None and not callable(progress):
            raise OptionError(f"progress={progress!r:.60}; give a function of seconds, or None")
        return self.open_stream(request, num_ahead=UTTERANCES_AHEAD)

    def _collect(self, stream: SpeechStream, progress: Callable[[float], None] | None) -> Speech:
        builder = SpeechBuilder(self.sample_rate)
        for chunk in stream_speech(stream):
            builder.add(chunk)
            if progress is not None:
                progress(builder.seconds)
        return builder.speech()

    def generate_batch(
        self, texts: Sequence[str], voice: Voice | str | None = None, **options: Unpack[SpeechOptions]
    ) -> list[Speech]:
        """Generates the speech of several texts at once: the results of `generate` in a fraction of the time.

        Args:
            texts: the texts to speak.
            voice, **options: as for `generate`; each text uses the same seed.

        Returns:
            The speech of each text, in order.

        Raises:
            HiggsAudioError: as for `generate`, for the first text that fails. Invalid arguments and texts are reported
                before anything is generated.
        """
        if isinstance(texts, str):
            raise TextError(f"texts={texts!r:.60} is one text; give a list of texts, or call generate")
        requests = [self.request(text, voice, options) for text in texts]
        speeches: dict[int, Speech] = {}
        with closing(self.generate_as_completed(requests)) as results:
            for number, result in results:
                if isinstance(result, HiggsAudioError):
                    raise result
                speeches[number] = result
        return [speeches[number] for number in range(len(requests))]

    def generate_as_completed(
        self, requests: Iterable[SpeechRequest]
    ) -> Generator[tuple[int, Speech | HiggsAudioError], None, None]:
        """Runs any number of requests, several at once; yields the index and the speech or error of each when done.

        Closing the iterator cancels the generation.

        Args:
            requests: requests from `request`; the next one is read when another is done.
        """
        return stream_many(
            requests,
            lambda request: self.open_stream(request, num_ahead=UTTERANCES_AHEAD, is_offline=True),
            self.sample_rate,
        )

    async def generate_async(
        self,
        text: str,
        voice: Voice | str | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """`generate` for asyncio; concurrent calls are generated together. Cancelling the task stops the generation."""
        request = await asyncio.to_thread(self.request, text, voice, options)
        stream = await asyncio.to_thread(self._open_checked, request, progress)
        try:
            return await asyncio.to_thread(self._collect, stream, progress)
        finally:
            stream.stop()

    async def stream_async(
        self,
        text: str,
        voice: Voice | str | None = None,
        *,
        low_latency: bool = False,
        **options: Unpack[SpeechOptions],
    ) -> AsyncIterator[Waveform]:
        """`stream` for asyncio; closing the iterator, or cancelling the task, cancels the generation."""
        request = await asyncio.to_thread(self.request, text, voice, options)
        await asyncio.to_thread(lambda: self.engine)  # created on first use
        stream = self.open_stream(request, look_ahead=_look_ahead(low_latency))  # submits in the first thread below
        pending: asyncio.Future[Chunk | None] | None = None
        try:
            while True:
                pending = asyncio.ensure_future(asyncio.to_thread(next, stream, None))
                chunk = await asyncio.shield(pending)
                if chunk is None:
                    return
                if len(chunk.samples):
                    yield Waveform(chunk.samples, self.sample_rate)
        finally:
            stream.stop()  # a thread may still be running it; the stream cannot be closed before that returns
            if pending is not None:
                await asyncio.wait([pending])
                if not pending.cancelled():
                    pending.exception()  # retrieved, so that asyncio does not log it: it has already been raised
            await asyncio.to_thread(stream.close)

    def stream(
        self,
        text: str,
        voice: Voice | str | None = None,
        *,
        low_latency: bool = False,
        **options: Unpack[SpeechOptions],
    ) -> Generator[Waveform, None, None]:
        """Generates the speech of a text in chunks, each as soon as it is final.

        Arguments are checked before the first chunk is requested. Closing the iterator cancels the generation.

        Args:
            text, voice, **options: as for `generate`.
            low_latency: whether to yield each chunk some frames earlier, before all frames that it depends on are
                known. The audio then differs slightly from `generate`; docs/measurements.md has the latency and the
                difference.

        Raises:
            HiggsAudioError: as for `generate`.
        """
        request = self.request(text, voice, options)
        return self._waveforms(request, _look_ahead(low_latency))

    def dialogue(
        self,
        script: Script,
        voices: Cast | None = None,
        *,
        progress: Callable[[float], None] | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Speech:
        """Generates a dialogue of any number of speakers: the concatenation of `stream_dialogue`.

        Each line is generated in the voice of its speaker; lines do not overlap.

        Args:
            script: a text with tags such as [SPEAKER1], where text before the first tag belongs to SPEAKER0; a text
                whose lines begin with a speaker of `voices` and a colon; or pairs of speaker and text.
            voices: speaker -> voice, or name of a voice. When None, the speakers have the voices of the checkpoint in
                order.
            progress, **options: as for `generate`; the pause `turn` is that between speakers.

        Raises:
            VoiceError: a speaker without voice, a voice without speaker, no such voice, or fewer named voices than
                speakers.
            PromptError: a script or voices of another form.
            HiggsAudioError: as for `generate`.
        """
        return self._collect(self._open_checked(self.dialogue_request(script, voices, options), progress), progress)

    def stream_dialogue(
        self,
        script: Script,
        voices: Cast | None = None,
        *,
        low_latency: bool = False,
        **options: Unpack[SpeechOptions],
    ) -> Generator[Waveform, None, None]:
        """Generates a dialogue in chunks, each as soon as it is final; see `dialogue` and `stream`."""
        return self._waveforms(self.dialogue_request(script, voices, options), _look_ahead(low_latency))

    def _waveforms(self, request: SpeechRequest, look_ahead: int | None) -> Generator[Waveform, None, None]:
        for chunk in stream_speech(self.open_stream(request, look_ahead=look_ahead)):
            if len(chunk.samples):
                yield Waveform(chunk.samples, self.sample_rate)

    def open_stream(
        self, request: SpeechRequest, *, num_ahead: int = 1, is_offline: bool = False, look_ahead: int | None = None
    ) -> SpeechStream:
        """Returns the stream of a request: its chunks of samples and codes. Submits nothing before it is iterated.

        Args:
            request: from `request`.
            num_ahead, is_offline, look_ahead: as in `SpeechStream`.
        """
        if self._queue.codec is not self.codec:  # the processor has a new audio tokenizer
            self._queue = DecodeQueue(self.codec)
        return SpeechStream(
            request,
            self.engine,
            self._builder,
            self._queue,
            num_ahead=num_ahead,
            is_offline=is_offline,
            look_ahead=look_ahead,
        )

    def request(self, text: str, voice: Voice | str | None, options: Mapping[str, Any]) -> SpeechRequest:
        """Returns the checked request of a `generate` call with these arguments, for `generate_as_completed`.

        Raises:
            HiggsAudioError: as for `generate`.
        """
        if not isinstance(voice, Voice):
            voice = self._voices.default() if voice is None else self._voices.find(str(voice))
        return self._builder.read_request([Line(text, voice)], options)

    def dialogue_request(self, script: Script, voices: Cast | None, options: Mapping[str, Any]) -> SpeechRequest:
        """Returns the checked request of a `dialogue` call with these arguments, for `generate_as_completed`.

        Raises:
            HiggsAudioError: as for `dialogue`.
        """
        pairs = read_script(script, () if voices is None else voices)
        lines = cast_script(pairs, voices, self.voices, self._voices.find)
        return self._builder.read_request(lines, options)


def _look_ahead(low_latency: bool) -> int | None:
    """Returns the look-ahead in frames; None for all frames that a sample depends on.

    Raises:
        OptionError: not a bool.
    """
    if not isinstance(low_latency, bool):
        raise OptionError(f"low_latency={low_latency!r}; allowed: True or False")
    return LOW_LATENCY_FRAMES if low_latency else None


def _load_options(checkpoint: Checkpoint, weights: str | None, dtype: torch.dtype) -> LoadOptions:
    """Returns the options for loading the model: dtype, and quantization as in the argument or the checkpoint."""
    saved = quantize.saved_method(checkpoint)
    if weights is not None and saved is not None:
        raise OptionError(f"weights={weights!r}, but {checkpoint} was saved quantized by {saved}; omit weights")
    options: LoadOptions = {"dtype": dtype}
    if weights is not None or saved is not None:
        # Quantize in host memory, then move: transformers would otherwise choose a GPU, even one without enough memory.
        options["device_map"] = {"": "cpu"}
    if weights is not None:
        options["quantization_config"] = quantize.quantization_config(weights, dtype)
    return options


def _load_processor(checkpoint: Checkpoint, device: torch.device) -> HiggsAudioProcessor:
    try:
        return HiggsAudioProcessor.from_pretrained(checkpoint, device_map=device)
    except HiggsAudioError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the tokenizer or processor files of {checkpoint} do not load: {error}; download them again"
        ) from error
