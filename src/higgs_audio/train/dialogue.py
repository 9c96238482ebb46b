"""Conversations of prepared clips to batches: the answer is the last turn, the renderer the usual one."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_audio.delay import delay_labels
from higgs_audio.guidance import hide_last_text
from higgs_audio.model import IGNORED
from higgs_audio.processor import HiggsAudioProcessor
from higgs_audio.prompt import Prompt, Turn, to_messages
from higgs_audio.template import AUDIO_OUT_BOS, END_OF_TURN, HEADER_END, HEADER_START
from higgs_audio.train.phones import PHONES, phone_ids
from higgs_audio.train.shards import Sample

# Positions that are neither phonemes nor frames: markers and header of a turn; the system turn with scene and profiles.
TURN_POSITIONS = 22
SYSTEM_POSITIONS = 27
TARGETS = ("look", "phones", "turn_labels", "said", "who")  # of a batch, beside the model's inputs
TOUCHED_ROWS = 0.7  # of a batch, where some codes are replaced
NAMED_COLUMNS = 12  # of a turn; after half a second its own past tells the voice


@dataclass(frozen=True)
class Dialogue:
    """One training example.

    A turn is trained where a listener to what precedes it knows its voice: by a profile, or by an earlier turn. The
    last turn always is.

    Args:
        turns: what is said, in order; the answer last.
        profile: names the voice of the only speaker.
        speakers: number of each turn's speaker; one speaker when left out.
        profiles: number of a speaker -> profile.
        system, scene: as in `Prompt`.
        unread: the last text is hidden, see `hide_last_text`.
    """

    turns: tuple[Sample, ...]
    profile: str | None = None
    speakers: tuple[int, ...] = ()
    profiles: Mapping[int, str] = field(default_factory=dict)
    system: str | None = None
    scene: str | None = None
    unread: bool = False

    @property
    def first_trained(self) -> int:
        """Number of the first turn from which on every voice is known."""
        speakers = self.speakers or (0,) * len(self.turns)
        known = {0} if self.profile else set(self.profiles)
        heard = [speakers.index(speaker) + 1 for speaker in set(speakers) - known]
        return min(max(heard, default=0), len(self.turns) - 1)

    @property
    def num_positions(self) -> int:
        """About how many positions its prompt has, never fewer."""
        said = sum(sample.num_frames + len(sample.phonemes) for sample in self.turns)
        return said + SYSTEM_POSITIONS + TURN_POSITIONS * len(self.turns)

    def messages(self, with_phonemes: bool = False) -> list[dict]:  # type: ignore[type-arg]
        """Chat messages with the codes of every turn; `with_phonemes` instead of the text, as the model reads it."""
        names: Sequence[str | None] = [f"SPEAKER{number}" for number in self.speakers] or [None] * len(self.turns)
        texts = [sample.phonemes if with_phonemes else sample.text for sample in self.turns]
        turns = tuple(Turn(t, name, s.codes) for t, s, name in zip(texts, self.turns, names, strict=True))
        lines = {0: self.profile} if self.profile else self.profiles
        profiles = {f"SPEAKER{number}": line for number, line in lines.items()}
        return to_messages(Prompt(turns, self.scene, profiles, self.system))


@dataclass(frozen=True)
class Batch:
    """What a step needs.

    `inputs` are the model's; `look [B, T]` and `phones [B, T]` the guide's targets; `turn_labels [B, F, K]` the audio
    labels of the trained turns alone, where `inputs` may have labels of references too; `said [B, T, 2]` where sound
    is, the number of its turn, from 1, and of its speaker, and zeros elsewhere; `who [B, T]` the number of the speaker
    that the guide is to name there.
    """

    inputs: dict[str, Tensor]
    look: Tensor
    phones: Tensor
    turn_labels: Tensor
    said: Tensor
    who: Tensor
    num_frames: int

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, **{name: getattr(self, name).to(device) for name in TARGETS})

    def arrays(self) -> dict[str, Any]:
        """Everything as small arrays, to be sent to another process: `from_arrays` makes the batch of them again."""
        tensors = {name: getattr(self, name) for name in TARGETS} | self.inputs
        short = {name: (t.int() if t.dtype == torch.int64 else t).numpy() for name, t in tensors.items()}
        return short | {"num_frames": self.num_frames}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "Batch":
        """The batch that `arrays` was called of."""
        numbers = {name: torch.from_numpy(value) for name, value in arrays.items() if name != "num_frames"}
        tensors = {name: t.long() if t.dtype == torch.int32 else t for name, t in numbers.items()}
        targets = {name: tensors.pop(name) for name in TARGETS}
        return cls(inputs=tensors, num_frames=arrays["num_frames"], **targets)


def collate(
    dialogues: Sequence[Dialogue],
    processor: HiggsAudioProcessor,
    reference_labels_after: int = 0,
    speakers: Mapping[str, int] | None = None,
) -> Batch:
    """Conversations to a batch, padded on the right, with labels and the guide's targets.

    With `reference_labels_after` (0: never) a turn whose voice nothing tells is labelled too, from that column on: by
    then it has been heard in the turn itself, and what follows teaches as much as another turn would. `speakers` are
    those that the guide can name.
    """
    known = processor.text_frontend == "phonemes" and all(len(s.phones) for d in dialogues for s in d.turns)
    if known:  # reading a text takes longer than all the rest
        processor = without_frontend(processor)
    conversations = [dialogue.messages(with_phonemes=known) for dialogue in dialogues]
    starts = [len(m) - 2 * (len(d.turns) - d.first_trained) for m, d in zip(conversations, dialogues, strict=True)]
    rendered = processor.apply_chat_template(conversations, add_generation_prompt=False, start_index=starts)
    inputs = pad_behind(dict(rendered))
    inputs["input_ids"] = hide_last_texts(inputs["input_ids"], dialogues, processor)
    turn_labels = inputs["audio_labels"]
    if reference_labels_after:
        inputs["audio_labels"] = with_reference_labels(turn_labels, dialogues, processor, reference_labels_after)
    look, phones = guide_targets(inputs["input_ids"], dialogues, processor)
    return Batch(
        inputs=inputs,
        look=look,
        phones=phones,
        turn_labels=turn_labels,
        said=said_in(inputs["input_ids"], dialogues, processor),
        who=who_speaks(inputs["input_ids"], dialogues, processor, speakers or {}),
        num_frames=sum(s.num_frames for d in dialogues for s in d.turns[d.first_trained :]),
    )


def without_frontend(processor: HiggsAudioProcessor) -> HiggsAudioProcessor:
    """The same processor for texts that are phonemes already."""
    other = copy.copy(processor)
    other.config = replace(processor.config, text_frontend="none")
    return other


def hide_last_texts(ids: Tensor, dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor) -> Tensor:
    """Token ids `[B, T]` with the last text of every unread dialogue hidden."""
    ids = ids.clone()
    for row, dialogue in enumerate(dialogues):
        if dialogue.unread:
            ids[row] = hide_last_text(ids[row], processor.tokenizer)
    return ids


def said_in(ids: Tensor, dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor) -> Tensor:
    """`said` of a batch of token ids `[B, T]`."""
    said = ids.new_zeros(*ids.shape, 2)
    opening: Any = processor.tokenizer.convert_tokens_to_ids(AUDIO_OUT_BOS)
    for row, dialogue in enumerate(dialogues):
        starts = (torch.eq(ids[row], opening).nonzero().squeeze(1) + 1).tolist()
        speakers = dialogue.speakers or (0,) * len(dialogue.turns)
        for turn, (start, speaker, sample) in enumerate(zip(starts, speakers, dialogue.turns, strict=True), start=1):
            num_columns = sample.num_frames + sample.codes.shape[0] + 1
            said[row, start : start + num_columns] = torch.tensor([turn, speaker])
    return said


def who_speaks(
    ids: Tensor, dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor, speakers: Mapping[str, int]
) -> Tensor:
    """`who` of a batch of token ids `[B, T]`: at the start of trained turns, from the token before the first column."""
    who = torch.full_like(ids, IGNORED)
    opening: Any = processor.tokenizer.convert_tokens_to_ids(AUDIO_OUT_BOS)
    for row, dialogue in enumerate(dialogues if speakers else ()):
        starts = torch.eq(ids[row], opening).nonzero().squeeze(1).tolist()
        for start, sample in list(zip(starts, dialogue.turns, strict=True))[dialogue.first_trained :]:
            who[row, start : start + 1 + NAMED_COLUMNS] = speakers.get(sample.speaker, IGNORED)
    return who


def guide_targets(ids: Tensor, dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor) -> tuple[Tensor, Tensor]:
    """`look` and `phones` of a batch of token ids `[B, T]`; IGNORED throughout where no clip was aligned."""
    look, phones = torch.full_like(ids, IGNORED), torch.full_like(ids, IGNORED)
    if any(len(sample.phones) for dialogue in dialogues for sample in dialogue.turns):
        finder = TurnFinder(processor.tokenizer)
        for row, dialogue in enumerate(dialogues):
            for sample, spoken_at, audio_at in zip(dialogue.turns, *finder.find(ids[row]), strict=True):
                point(sample, spoken_at, finder.phones[ids[row, spoken_at]], audio_at, look[row], phones[row])
    return look, phones


def with_reference_labels(
    labels: Tensor, dialogues: Sequence[Dialogue], processor: HiggsAudioProcessor, after: int
) -> Tensor:
    """`labels [B, F, K]` with those of the turns before `first_trained`, each from its column number `after` on."""
    labels, eos = labels.clone(), processor.config.audio_codebook_size + 1
    for row, dialogue in enumerate(dialogues):
        start = 0
        for turn in dialogue.turns[: dialogue.first_trained]:
            own = delay_labels(torch.from_numpy(turn.codes.astype("int64")), eos, IGNORED).T  # [L, K]
            labels[row, start + after : start + len(own)] = own[after:]
            start += len(own)
    return labels


def pad_behind(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Moves the padding of every row of tokens from the left to the right, where being causal hides it."""
    attended = inputs["attention_mask"]  # [B, T]
    num_pads = (1 - attended).sum(1, keepdim=True)  # [B, 1]
    order = (torch.arange(attended.shape[1]) + num_pads) % attended.shape[1]  # [B, T]
    moved = {name: inputs[name].gather(1, order) for name in ("input_ids", "attention_mask", "labels")}
    return inputs | moved


class TurnFinder:
    """Finds, in the token ids of a conversation, the phones of each user text and the start of each audio segment.

    `phones [V]` is the phone that a token is, 0 where it is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        header = tokenizer(HEADER_START + "user" + HEADER_END + "\n\n", add_special_tokens=False)["input_ids"]
        self._header = torch.tensor(header)
        self._audio_bos: Any = tokenizer.convert_tokens_to_ids(AUDIO_OUT_BOS)
        self._end: Any = tokenizer.convert_tokens_to_ids(END_OF_TURN)
        self.phones = torch.zeros(len(tokenizer), dtype=torch.long)
        self.phones[torch.tensor(tokenizer.convert_tokens_to_ids(list(PHONES)))] = torch.tensor(phone_ids(PHONES))

    def find(self, ids: Tensor) -> tuple[list[Tensor], list[int]]:
        """Of `ids [T]`, the positions of the phones of each user text, and of the first column of each audio."""
        windows = ids.unfold(0, len(self._header), 1)
        texts = torch.eq(windows, self._header).all(1).nonzero().squeeze(1) + len(self._header)
        spoken = torch.where(torch.eq(ids, self._end), -1, self.phones[ids])
        audios = torch.eq(ids, self._audio_bos).nonzero().squeeze(1) + 1
        return [self._phones_of(spoken, start) for start in texts.tolist()], audios.tolist()

    def _phones_of(self, spoken: Tensor, start: int) -> Tensor:
        """Positions of the phones between `start` and the end of its turn."""
        end = start + int(torch.eq(spoken[start:], -1).nonzero()[0])
        return start + spoken[start:end].nonzero().squeeze(1)


def point(sample: Sample, spoken_at: Tensor, names: Tensor, audio_at: int, look: Tensor, phones: Tensor) -> None:
    """Writes the guide's targets of one turn: the column before frame f looks at, and names, the phone of frame f.

    Nothing where nothing was aligned, where the text is hidden, or where sentences that were joined read otherwise than
    alone, so that their phones are not those aligned.
    """
    if not len(sample.phones) or len(spoken_at) != sum(p in PHONES for p in sample.phonemes):
        return
    heard = torch.from_numpy(sample.phones.astype("int64"))  # [F]
    columns = slice(audio_at, audio_at + len(heard))
    look[columns] = spoken_at[heard]
    phones[columns] = names[heard]


def corrupt(columns: Tensor, labels: Tensor, share: float, keys: Sequence[int], codebook_size: int) -> Tensor:
    """Input columns `[B, F, K]` with a random `share` of the trained cells replaced by random codes.

    Without it the model copies the frame before and never learns to read. Seven rows of ten are touched. What is drawn
    for a cell depends on its row's key and its place alone: it does not matter with which others a row is in a batch.
    """
    rows = scrambled(torch.tensor(keys, device=columns.device))  # [B]
    cells = torch.arange(columns[0].numel(), device=columns.device).view(columns.shape[1:])  # [F, K]
    drawn = scrambled(rows[:, None, None] + cells)
    hit = (uniform(rows) < TOUCHED_ROWS)[:, None, None] & (uniform(drawn) < share)
    trained = (labels != IGNORED) & (columns < codebook_size)
    return torch.where(trained & hit, (drawn >> 32) % codebook_size, columns)


def scrambled(numbers: Tensor) -> Tensor:
    """Each int64 as a random one: splitmix64, which needs no state."""
    x = numbers * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3_FFFF_FFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1F_FFFF_FFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1_FFFF_FFFF)


def uniform(scrambled: Tensor) -> Tensor:
    """Numbers in [0, 1) of the lower 24 bits."""
    return (scrambled & 0xFF_FFFF) / 2**24
