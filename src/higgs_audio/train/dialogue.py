"""Prepared clips to conversations, and those to batches: the answer is the last turn, the renderer the usual one."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_audio.model import IGNORED
from higgs_audio.processor import HiggsAudioProcessor
from higgs_audio.prompt import Prompt, Turn, to_messages
from higgs_audio.template import AUDIO_OUT_BOS, HEADER_END, HEADER_START
from higgs_audio.train.phones import PHONES, phone_ids
from higgs_audio.train.prepare import Sample


@dataclass(frozen=True)
class Dialogue:
    """One training example: `turns` of one speaker; `profile` names the voice, if any does.

    The turn after a reference is trained. The first one is trained only if the text says whose voice it is.
    """

    turns: tuple[Sample, ...]
    profile: str | None = None

    @property
    def first_trained(self) -> int:
        """Number of the first trained turn."""
        return 0 if self.profile else len(self.turns) - 1

    def messages(self) -> list[dict]:  # type: ignore[type-arg]
        """Chat messages with the codes of every turn."""
        turns = tuple(Turn(text=sample.text, codes=sample.codes) for sample in self.turns)
        profiles = {"SPEAKER0": self.profile} if self.profile else {}
        return to_messages(Prompt(turns=turns, profiles=profiles))


@dataclass(frozen=True)
class Batch:
    """What a step needs. `inputs` are the model's; `look [B, T]` and `phones [B, T]` the guide's targets."""

    inputs: dict[str, Tensor]
    look: Tensor
    phones: Tensor
    num_frames: int


class Composer:
    """Draws a conversation for each sample.

    Args:
        samples: all prepared clips.
        profiles: speaker -> profile text, of the voices that are called by name; other speakers are only ever heard
            after a reference of their own.
        default: the named speaker that speaks where nothing is asked for.
        reference_share: share of a named speaker's samples that are the second of two turns.
        plain_share: share of the default speaker's samples without either.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        profiles: Mapping[str, str],
        default: str,
        reference_share: float = 0.15,
        plain_share: float = 0.3,
        max_reference_frames: int = 60,
    ) -> None:
        self._samples, self._profiles, self._default = samples, profiles, default
        self._reference_share, self._plain_share = reference_share, plain_share
        self._references: dict[str, list[int]] = defaultdict(list)
        for number, sample in enumerate(samples):
            if sample.num_frames <= max_reference_frames:
                self._references[sample.speaker].append(number)

    def compose(self, number: int, generator: torch.Generator) -> Dialogue:
        """The conversation whose last turn is sample `number`."""
        sample = self._samples[number]
        draw = float(torch.rand((), generator=generator))
        profile = self._profiles.get(sample.speaker)
        if profile is None or draw < self._reference_share:
            reference = self._reference(number, generator)
            if reference is not None:
                return Dialogue((reference, sample), profile)
        if sample.speaker == self._default and draw > 1 - self._plain_share:
            return Dialogue((sample,))
        return Dialogue((sample,), profile)

    def _reference(self, number: int, generator: torch.Generator) -> Sample | None:
        """Another clip of the same speaker, never the target itself."""
        pool = [i for i in self._references[self._samples[number].speaker] if i != number]
        if not pool:
            return None
        return self._samples[pool[int(torch.randint(len(pool), (), generator=generator))]]


def collate(dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor) -> Batch:
    """Conversations to a padded batch with labels and the guide's targets."""
    conversations = [dialogue.messages() for dialogue in dialogues]
    starts = [len(m) - 2 * (len(d.turns) - d.first_trained) for m, d in zip(conversations, dialogues, strict=True)]
    inputs = dict(processor.apply_chat_template(conversations, add_generation_prompt=False, start_index=starts))
    ids = inputs["input_ids"]
    look, phones = torch.full_like(ids, IGNORED), torch.full_like(ids, IGNORED)
    finder = TurnStarts(processor.tokenizer)
    for row, dialogue in enumerate(dialogues):
        for sample, text_at, audio_at in zip(dialogue.turns, *finder.find(ids[row]), strict=True):
            point(sample, text_at, audio_at, look[row], phones[row])
    return Batch(inputs, look, phones, sum(s.num_frames for d in dialogues for s in d.turns[d.first_trained :]))


class TurnStarts:
    """Finds where, in the token ids of a conversation, each user text and each audio segment begins."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        header = tokenizer(HEADER_START + "user" + HEADER_END + "\n\n", add_special_tokens=False)["input_ids"]
        self._header = torch.tensor(header)
        self._audio_bos: Any = tokenizer.convert_tokens_to_ids(AUDIO_OUT_BOS)

    def find(self, ids: Tensor) -> tuple[list[int], list[int]]:
        """Positions of the first token of each user text, and of the first column of each audio, of `ids [T]`."""
        width = len(self._header)
        windows = ids.unfold(0, width, 1)
        texts = torch.eq(windows, self._header).all(1).nonzero().squeeze(1) + width
        audios = torch.eq(ids, self._audio_bos).nonzero().squeeze(1) + 1
        return texts.tolist(), audios.tolist()


def point(sample: Sample, text_at: int, audio_at: int, look: Tensor, phones: Tensor) -> None:
    """Writes the guide's targets of one turn: the column before frame f looks at, and names, the phone of frame f."""
    spoken = [(place, p) for place, p in enumerate(sample.phonemes) if p in PHONES]
    places = torch.tensor([place for place, _ in spoken])
    ids = torch.tensor(phone_ids("".join(p for _, p in spoken)))
    heard = torch.from_numpy(sample.phones.astype("int64"))  # [F]
    columns = slice(audio_at, audio_at + len(heard))
    look[columns] = text_at + places[heard]
    phones[columns] = ids[heard]


def corrupt(columns: Tensor, labels: Tensor, share: float, generator: torch.Generator, codebook_size: int) -> Tensor:
    """Input columns `[B, F, K]` with a random `share` of the trained cells replaced by random codes.

    Without it the model copies the frame before and never learns to read. Seven rows of ten are touched.
    """
    cells = (torch.rand(columns.shape, generator=generator) < share) & (labels != IGNORED)
    cells &= columns < codebook_size
    cells &= torch.rand(len(columns), 1, 1, generator=generator) < 0.7
    noise = torch.randint(codebook_size, columns.shape, generator=generator)
    return torch.where(cells, noise, columns)
