"""Targets of the guide: which text position each column speaks, and whose voice it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_audio.data.phones import PHONES, phone_ids
from higgs_audio.data.shards import EncodedClip
from higgs_audio.model.model import IGNORED
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.special_tokens import AUDIO_OUT_BOS, END_OF_TURN, HEADER_END, HEADER_START
from higgs_audio.train_lm.examples import Dialogue

NAMED_COLUMNS = 12  # of a turn; after half a second its own past tells the voice


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


def point(sample: EncodedClip, spoken_at: Tensor, names: Tensor, audio_at: int, look: Tensor, phones: Tensor) -> None:
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
