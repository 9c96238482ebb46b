"""Tests of the collation of conversations: labels, padding and the targets of the guide."""

from dataclasses import replace

import numpy as np
import torch

from higgs_audio.data.phones import phone_ids, phones
from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.generation.guidance import mask_last_text
from higgs_audio.model.model import HiggsAudioForConditionalGeneration
from higgs_audio.train_lm.collate import TARGETS, Batch, collate
from higgs_audio.train_lm.targets import SPEAKER_LABEL_COLUMNS


def test_only_the_frames_of_trained_turns_have_labels(dialogues, processor):
    chosen = [d for d in dialogues if d.first_trained][:6] + [d for d in dialogues if d.profiles][:2]
    batch = collate(chosen, processor)
    for row, dialogue in enumerate(chosen):
        labels = batch.inputs["audio_labels"][row]
        trained = labels[(labels[:, 0] != IGNORE_INDEX) & (labels[:, 0] < 1024), 0].numpy()
        expected = [turn.codes[0] for turn in dialogue.turns[dialogue.first_trained :]]
        assert np.array_equal(trained, np.concatenate(expected))


def test_references_have_labels_from_the_column_that_the_recipe_names(dialogues, processor):
    chosen = [d for d in dialogues if d.first_trained][:6]
    without, batch = collate(chosen, processor), collate(chosen, processor, reference_labels_after=25)
    assert torch.equal(batch.turn_labels, without.inputs["audio_labels"])
    for row, dialogue in enumerate(chosen):
        labels, columns = batch.inputs["audio_labels"][row], batch.inputs["audio_input_ids"][row]
        start = 0
        for number, turn in enumerate(dialogue.turns):
            length = turn.num_frames + 9
            first = start + (25 if number < dialogue.first_trained else 0)
            labeled = labels[first : start + length]
            assert bool((labels[start:first] == IGNORE_INDEX).all())
            codes = labeled[(labeled[:, 0] != IGNORE_INDEX) & (labeled[:, 0] < 1024), 0]
            skipped = max(0, first - start - 1)  # the first column contains the stream bos
            assert np.array_equal(codes.numpy(), turn.codes[0, skipped:])
            ends = (labeled == 1025).sum(0)
            assert ends.tolist() == [1] * 8
            cells = labeled != IGNORE_INDEX
            assert torch.equal(labeled[cells], columns[first : start + length][cells])
            start += length


def test_padding_is_on_the_right_and_does_not_change_the_logits(dialogues, processor, tiny_checkpoint):
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    chosen = sorted(dialogues[:40], key=lambda dialogue: dialogue.num_positions)[::13]
    batch = collate(chosen, processor)
    attended = batch.inputs["attention_mask"]
    assert bool((attended[:, 1:] <= attended[:, :-1]).all()) and not bool(attended.all())
    with torch.no_grad():
        together = model(**batch.inputs).logits
        for row, dialogue in enumerate(chosen):
            inputs = collate([dialogue], processor).inputs
            alone = model(**inputs).logits[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_attention_targets_are_in_the_text_of_the_same_turn(dialogues, processor):
    """Not in the text of the reference or, in a joined turn, of the previous sentence. Earlier, targets after a speaker
    tag were one phoneme too early."""
    several = [d for d in dialogues if len(d.turns) > 2 and any("+" in turn.id for turn in d.turns)][:4]
    batch = collate(several, processor)
    column_ids = processor.tokenizer.convert_tokens_to_ids(["<|AUDIO_OUT|>", "<|reserved_special_token_6|>"])
    for row, dialogue in enumerate(several):
        ids = batch.inputs["input_ids"][row]
        columns = torch.isin(ids, torch.tensor(column_ids)).nonzero().squeeze(1).tolist()
        start, last_target = 0, -1
        for turn in dialogue.turns:
            turn_phones = phones(turn.text)
            positions = columns[start : start + turn.num_frames]
            targets = batch.attention_targets[row, positions].tolist()
            names = [processor.tokenizer.convert_ids_to_tokens(int(ids[target])) for target in targets]
            assert names == [turn_phones[phone] for phone in turn.phones]
            assert targets == sorted(targets)
            assert targets[0] > last_target
            last_target = targets[-1]
            assert batch.phone_labels[row, positions].tolist() == phone_ids("".join(names))
            start += turn.num_frames + 8 + 1


def test_num_positions_is_an_upper_bound_of_the_prompt_length(dialogues, processor):
    """Batches are filled by this number: if it were too small, they would exceed the memory."""
    for dialogue in dialogues[:60]:
        length = collate([dialogue], processor).inputs["input_ids"].shape[1]
        assert length <= dialogue.num_positions <= length + 30


def test_a_batch_survives_the_round_trip_through_arrays(dialogues, processor):
    batch = collate(dialogues[:6], processor, 10, {"ava": 0, "joe": 1})
    other = Batch.from_arrays(batch.arrays())
    assert other.num_frames == batch.num_frames
    for name in TARGETS:
        torch.testing.assert_close(getattr(other, name), getattr(batch, name), rtol=0, atol=0)
    assert other.inputs.keys() == batch.inputs.keys()
    for name, value in batch.inputs.items():
        torch.testing.assert_close(other.inputs[name], value, rtol=0, atol=0)


def test_prepared_phonemes_give_the_same_prompt_as_phonemizing_the_text(dialogues, processor):
    messages = [dialogue.messages() for dialogue in dialogues]
    prompts = processor.encode_conversations(messages, add_generation_prompt=False)
    phonemized = processor.collate(prompts, padding_side="right")
    prepared = collate(dialogues, processor).inputs
    assert torch.equal(prepared["input_ids"], phonemized["input_ids"])
    assert torch.equal(prepared["audio_input_ids"], phonemized["audio_input_ids"])


def test_a_dropped_text_becomes_padding_without_alignment_targets(dialogues, processor, speaker_classes):
    """The labels of its audio and its speaker stay."""
    for dialogue in dialogues[:40]:
        whole = collate([dialogue], processor, speakers=speaker_classes)
        dropped = collate([replace(dialogue, drops_text=True)], processor, speakers=speaker_classes)
        ids = whole.inputs["input_ids"][0]
        assert torch.equal(dropped.inputs["input_ids"][0], mask_last_text(ids, processor.tokenizer))
        last = dropped.turn_speakers[0, :, 0] == len(dialogue.turns)
        for name in ("attention_targets", "phone_labels"):
            targets, other = getattr(whole, name)[0], getattr(dropped, name)[0]
            assert bool((targets[last] != IGNORE_INDEX).any()) and bool((other[last] == IGNORE_INDEX).all())
            assert torch.equal(other[~last], targets[~last])
        for name in ("labels", "audio_labels", "audio_input_ids", "attention_mask"):
            assert torch.equal(dropped.inputs[name], whole.inputs[name])
        assert torch.equal(dropped.speaker_labels, whole.speaker_labels)


def test_speaker_labels_are_at_the_start_of_trained_turns(dialogues, processor, speaker_classes):
    """From the token that predicts the first column until earlier columns of the turn reveal the speaker."""
    opening = processor.tokenizer.convert_tokens_to_ids("<|audio_out_bos|>")
    for dialogue in dialogues[:60]:
        batch = collate([dialogue], processor, speakers=speaker_classes)
        expected = torch.full_like(batch.speaker_labels, IGNORE_INDEX)
        starts = (batch.inputs["input_ids"][0] == opening).nonzero().squeeze(1).tolist()
        assert len(starts) == len(dialogue.turns)
        for start, turn in list(zip(starts, dialogue.turns, strict=True))[dialogue.first_trained :]:
            expected[0, start : start + SPEAKER_LABEL_COLUMNS + 1] = speaker_classes[turn.speaker]
        assert torch.equal(batch.speaker_labels, expected)
    assert bool((collate(dialogues[:1], processor).speaker_labels == IGNORE_INDEX).all())
