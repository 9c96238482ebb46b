"""Targets of the guide: the text position and phone of each column, and the speaker of each turn."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_audio.data.phones import PHONES, phone_ids
from higgs_audio.data.shards import EncodedClip
from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.prompt.encoder import EncodedPrompt
from higgs_audio.train_lm.examples import Dialogue

SPEAKER_LABEL_COLUMNS = 12  # labeled columns of a turn; after half a second its own codes reveal the voice


def turn_speakers(ids: Tensor, prompts: Sequence[EncodedPrompt], dialogues: Sequence[Dialogue]) -> Tensor:
    """Returns `Batch.turn_speakers` for token ids `[B, T]`."""
    found = ids.new_zeros(*ids.shape, 2)
    for row, (prompt, dialogue) in enumerate(zip(prompts, dialogues, strict=True)):
        speakers = dialogue.speakers or (0,) * len(dialogue.turns)
        for turn, ((start, stop), speaker) in enumerate(zip(audio_spans(prompt), speakers, strict=True), start=1):
            found[row, start:stop] = torch.tensor([turn, speaker])
    return found


def speaker_labels(
    ids: Tensor, prompts: Sequence[EncodedPrompt], dialogues: Sequence[Dialogue], speakers: Mapping[str, int]
) -> Tensor:
    """Returns `Batch.speaker_labels` for token ids `[B, T]`.

    Labels are at the start of trained turns, from the token before the first column on.
    """
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, (prompt, dialogue) in enumerate(zip(prompts, dialogues, strict=True) if speakers else ()):
        for (start, _), sample in list(zip(audio_spans(prompt), dialogue.turns, strict=True))[dialogue.first_trained :]:
            labels[row, start - 1 : start + SPEAKER_LABEL_COLUMNS] = speakers.get(sample.speaker, IGNORE_INDEX)
    return labels


def alignment_targets(
    ids: Tensor, prompts: Sequence[EncodedPrompt], dialogues: Sequence[Dialogue], tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor]:
    """Returns `Batch.attention_targets` and `Batch.phone_labels` for token ids `[B, T]`.

    Both are IGNORE_INDEX throughout if no clip is aligned.
    """
    attention_targets, phone_labels = torch.full_like(ids, IGNORE_INDEX), torch.full_like(ids, IGNORE_INDEX)
    if any(len(sample.phones) for dialogue in dialogues for sample in dialogue.turns):
        phones_of = phone_table(tokenizer)
        for row, (prompt, dialogue) in enumerate(zip(prompts, dialogues, strict=True)):
            phones = phones_of[ids[row]]  # [T]
            texts, targets = prompt.turns_of("user"), (attention_targets[row], phone_labels[row])
            for sample, text, (start, _) in zip(dialogue.turns, texts, audio_spans(prompt), strict=True):
                positions = text.start + phones[text.start : text.stop].nonzero().squeeze(1)
                write_alignment(sample, positions, phones[positions], start, *targets)
    return attention_targets, phone_labels


def audio_spans(prompt: EncodedPrompt) -> list[tuple[int, int]]:
    """Returns the placeholders (start, stop) of the audio of each assistant turn."""
    return [span for turn in prompt.turns_of("assistant") for span in turn.audio]


def phone_table(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Returns the phone of each token, `[V_text]`; 0 if the token is not a phone."""
    phones = torch.zeros(len(tokenizer), dtype=torch.long)
    phones[torch.tensor(tokenizer.convert_tokens_to_ids(list(PHONES)))] = torch.tensor(phone_ids(PHONES))
    return phones


def write_alignment(
    sample: EncodedClip, positions: Tensor, phones: Tensor, start: int, attention_targets: Tensor, phone_labels: Tensor
) -> None:
    """Writes the targets of one turn: the column before frame f attends to, and predicts, the phone of frame f.

    Writes nothing if the clip is not aligned, if its text is dropped, or if joined sentences are phonemized
    differently than separate ones, so that their phones are not the aligned phones.

    Args:
        sample: the clip of the turn.
        positions, phones: text positions `[P]` of its phones, and the phones themselves.
        start: position of its first column.
        attention_targets, phone_labels: rows `[T]` to write to.
    """
    if not len(sample.phones) or len(positions) != sum(p in PHONES for p in sample.phonemes):
        return
    aligned = torch.from_numpy(sample.phones.astype("int64"))  # [F]
    columns = slice(start, start + len(aligned))
    attention_targets[columns] = positions[aligned]
    phone_labels[columns] = phones[aligned]
