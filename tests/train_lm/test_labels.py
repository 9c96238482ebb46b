"""Tests of conversations as tensors: labels, targets of the guide, corruption."""

import numpy as np
import pytest
import torch
from corpus import TEXTS

from higgs_audio.data.phones import phone_ids, phones
from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.prompt.prompt import Prompt, Turn, to_messages
from higgs_audio.text.phonemes import phonemize
from higgs_audio.train_lm.collate import collate
from higgs_audio.train_lm.corruption import corrupt
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.heldout import with_reversed_texts


@pytest.mark.parametrize("kind", ["reference", "profile", "plain"])
def test_a_training_prompt_equals_the_prompt_of_inference(clips, processor, kind):
    """The prompt before the trained turn has the ids of the prompt of inference for the same voice and text. Earlier, a
    turn with codes counted as a reference even if it was the trained turn, and prompts without a profile were trained
    without the system turn of inference."""
    reference, target = clips[0], clips[2]
    turns = (reference, target) if kind == "reference" else (target,)
    trained = Dialogue(turns, "Ava" if kind == "profile" else None)
    references = (Turn(reference.text, codes=reference.codes),) if kind == "reference" else ()
    profiles = {"SPEAKER0": "Ava"} if kind == "profile" else {}
    messages = to_messages(Prompt((*references, Turn(target.text)), profiles=profiles))
    expected = processor.apply_chat_template(messages, add_generation_prompt=True)["input_ids"][0]
    ids = processor.apply_chat_template(trained.messages(), add_generation_prompt=False)["input_ids"][0]
    assert ids[: len(expected)].tolist() == expected.tolist()


def test_only_the_last_turn_has_labels(clips, processor):
    batch = collate([Dialogue((clips[0], clips[2])), Dialogue((clips[1],), "Joe")], processor)
    for row, target in enumerate((clips[2], clips[1])):
        labels = batch.inputs["audio_labels"][row]
        assert (labels[:, 0] != IGNORE_INDEX).sum() == target.num_frames + 1
        codes = labels[labels[:, 0] != IGNORE_INDEX][:-1, 0]
        assert np.array_equal(codes.numpy(), target.codes[0])
        text = batch.inputs["labels"][row]
        assert processor.tokenizer.convert_ids_to_tokens(text[text != IGNORE_INDEX].tolist()) == [
            "<|audio_out_bos|>",
            "<|audio_eos|>",
            "<|eot_id|>",
        ]
    assert batch.num_frames == clips[2].num_frames + clips[1].num_frames


def test_a_first_turn_has_labels_only_if_the_prompt_has_its_profile(clips, processor):
    turns = (clips[0], clips[2])
    named, unnamed = (collate([Dialogue(turns, profile)], processor) for profile in ("Ava", None))
    trained = [int((batch.inputs["audio_labels"][..., 0] != IGNORE_INDEX).sum()) for batch in (named, unnamed)]
    first, last = (clip.num_frames + 1 for clip in turns)  # the frames and one end of stream
    assert trained == [first + last, last]
    assert (named.num_frames, unnamed.num_frames) == (first + last - 2, last - 1)


def test_attention_targets_point_from_the_column_before_a_frame_to_its_phone(clips, processor):
    dialogue = Dialogue((clips[0], clips[2]), "Ava")
    batch = collate([dialogue, Dialogue((clips[1],), "Joe")], processor)
    ids = batch.inputs["input_ids"][0]
    columns = torch.isin(
        ids, torch.tensor(processor.tokenizer.convert_tokens_to_ids(["<|AUDIO_OUT|>", "<|reserved_special_token_6|>"]))
    )
    start = 0
    column_positions = columns.nonzero().squeeze(1)
    for clip in dialogue.turns:
        spoken = phones(clip.text)
        for frame, phone in enumerate(clip.phones):
            position = int(column_positions[start + frame])  # column f predicts column f + 1, the first of frame f
            token = processor.tokenizer.convert_ids_to_tokens(int(ids[batch.attention_targets[0, position]]))
            assert token == spoken[phone]
            assert int(batch.phone_labels[0, position]) == phone_ids(spoken[phone])[0]
        start += clip.num_frames + 8 + 1
    assert int((batch.attention_targets[0] >= 0).sum()) == clips[0].num_frames + clips[2].num_frames


def test_each_phoneme_of_a_prompt_is_one_token(processor):
    """The guide counts characters: a merged pair of phonemes would shift all later targets."""
    for text in TEXTS:
        spoken = phonemize(text)
        assert processor.tokenizer.tokenize(spoken) == list(spoken)


def test_corruption_changes_a_share_of_the_trained_codes_and_nothing_else(clips, processor):
    batch = collate([Dialogue((clips[0], clips[2]))] * 40, processor)
    columns, labels = batch.inputs["audio_input_ids"], batch.inputs["audio_labels"]
    changed = corrupt(columns, labels, 0.5, range(40), 1024)
    trained = (labels != IGNORE_INDEX) & (columns < 1024)
    assert torch.equal(changed[~trained], columns[~trained])
    assert bool((changed < 1024)[trained].all())
    assert 0.25 < float((changed != columns)[trained].float().mean()) < 0.45
    assert torch.equal(corrupt(columns, labels, 0.0, range(40), 1024), columns)
    other = corrupt(columns[7:9, :-1], labels[7:9, :-1], 0.5, (7, 8), 1024)
    assert torch.equal(other, changed[7:9, :-1]), "corruption depends on the rest of the batch"


def test_the_other_texts_of_the_held_out_check_have_the_same_ids_in_another_order(clips, processor):
    batch = collate([Dialogue((clips[0],), "Ava")], processor)
    changed = with_reversed_texts(batch).inputs["input_ids"]
    assert not torch.equal(changed, batch.inputs["input_ids"])
    assert torch.equal(changed.sort().values, batch.inputs["input_ids"].sort().values)
