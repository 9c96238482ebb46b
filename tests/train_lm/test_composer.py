"""Tests of the composition of training conversations."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from higgs_audio.data.phones import phones
from higgs_audio.prompt.prompt import MULTI_SPEAKER
from higgs_audio.train_lm.composer import (
    CLONE_FORMS,
    NUM_SPEAKERS,
    QUIET_ROOM,
    SAME_VOICE,
    SEVERAL_FORMS,
    SEVERAL_SPEAKERS,
    Composer,
    ExampleMix,
    join,
    usable,
)
from higgs_audio.train_lm.draws import Draws


def clip_ids(turn):
    return turn.id.split("+")


def speaker_numbers(dialogue):
    return dialogue.speakers or (0,) * len(dialogue.turns)


def test_a_conversation_contains_no_clip_twice(dialogues):
    """Otherwise the answer could be copied from its own reference."""
    for dialogue in dialogues:
        clips = [clip for turn in dialogue.turns for clip in clip_ids(turn)]
        assert len(clips) == len(set(clips))


def test_every_conversation_ends_with_the_sample_it_is_composed_for(dialogues, samples):
    for dialogue, sample in zip(dialogues, samples * 20, strict=True):
        assert clip_ids(dialogue.turns[-1])[-1] == sample.id


def test_each_speaker_number_is_one_speaker(dialogues):
    for dialogue in dialogues:
        pairs = set(zip(speaker_numbers(dialogue), (turn.speaker for turn in dialogue.turns), strict=True))
        assert len(pairs) == len({number for number, _ in pairs}) == len({speaker for _, speaker in pairs})


def test_the_voice_of_a_trained_turn_has_a_profile_or_an_earlier_turn(dialogues):
    """The first turn of a speaker without profile is not trained, unless it is the only turn of the default speaker."""
    for dialogue in dialogues:
        numbers, first = speaker_numbers(dialogue), dialogue.first_trained
        with_profile = {0} if dialogue.profile else set(dialogue.profiles)
        for index in range(first, len(numbers)):
            alone = len(numbers) == 1 and dialogue.turns[0].speaker == "ava"
            assert alone or numbers[index] in with_profile or numbers[index] in numbers[:index]
        assert first == 0 or numbers[first - 1] not in {*with_profile, *numbers[: first - 1]}


def test_references_have_the_length_of_the_mix_if_a_speaker_has_enough_clips(dialogues):
    lengths = [turn.num_frames for dialogue in dialogues for turn in dialogue.turns[: dialogue.first_trained]]
    assert max(lengths) <= 90
    assert np.mean([length >= 40 for length in lengths]) > 0.8
    assert any("+" in turn.id for dialogue in dialogues for turn in dialogue.turns[: dialogue.first_trained])


def test_all_kinds_of_conversation_occur(dialogues):
    def kind(dialogue):
        if dialogue.speakers:
            return "cast" if dialogue.profiles else f"several {len(set(dialogue.speakers))}"
        if dialogue.first_trained or len(dialogue.turns) > 1:
            return "clone with profile" if dialogue.profile else "clone"
        return "profile" if dialogue.profile else "plain"

    kinds = Counter(map(kind, dialogues))
    several = {"several 2", "several 3", "several 4"}
    assert set(kinds) == several | {"cast", "clone", "clone with profile", "profile", "plain"}
    assert min(kinds.values()) >= 5


def test_the_prompts_are_those_of_the_published_examples(dialogues, processor):
    """Each text is a single token of nano's tokenizer, so every character matters."""
    clone = next(d for d in dialogues if d.system == SAME_VOICE and d.scene and len(d.turns) == 2)
    system, user, assistant, last_user, _ = clone.messages()
    assert system["content"] == f"{SAME_VOICE}\n\n<|scene_desc_start|>\n{QUIET_ROOM}\n<|scene_desc_end|>"
    assert (user["content"], last_user["content"]) == tuple(turn.text for turn in clone.turns)
    assert np.array_equal(assistant["content"][0]["codes"], clone.turns[0].codes)
    several = next(d for d in dialogues if d.system == SEVERAL_SPEAKERS and len(set(d.speakers)) == 2)
    messages = several.messages()
    assert messages[0] == {"role": "system", "content": SEVERAL_SPEAKERS}
    assert [m["content"] for m in messages if m["role"] == "user"] == [
        f"[SPEAKER{number}] {turn.text}" for number, turn in zip(several.speakers, several.turns, strict=True)
    ]
    for text in (SAME_VOICE, QUIET_ROOM, SEVERAL_SPEAKERS, MULTI_SPEAKER, "[SPEAKER1] "):
        assert len(processor.tokenizer.tokenize(text)) == 1


def test_the_alignment_of_joined_clips_refers_to_the_joined_text(samples):
    joined = join(samples[:3])
    assert joined.num_frames == sum(sample.num_frames for sample in samples[:3])
    all_phones = phones(joined.text)
    expected = [phones(sample.text)[phone] for sample in samples[:3] for phone in sample.phones]
    assert [all_phones[phone] for phone in joined.phones] == expected


def test_a_speaker_with_one_clip_and_no_profile_is_dropped(samples):
    """Without a reference its prompt would be that of the default voice."""
    few = [samples[0], samples[8], samples[16], samples[17]]
    assert usable(few, {"ava": "Ava"}) == [samples[0], samples[16], samples[17]]


def test_the_only_other_clip_of_a_speaker_is_found(samples, mix):
    composer = Composer(samples[16:18], {}, "", mix)
    for seed in range(200):
        assert composer.compose(0, torch.Generator().manual_seed(seed)).turns == (samples[17], samples[16])


def test_a_share_of_the_conversations_drops_its_last_text_and_is_otherwise_the_same(samples, mix):
    """Dropping a text changes no other draw of the conversation."""
    never, often = (
        [composer.compose(n % len(samples), torch.Generator().manual_seed(n)) for n in range(300)]
        for composer in (Composer(samples, {"ava": "Ava"}, "ava", replace(mix, unread=share)) for share in (0.0, 0.3))
    )
    assert not any(dialogue.drops_text for dialogue in never)
    assert 0.2 < sum(dialogue.drops_text for dialogue in often) / 300 < 0.4

    def rest(dialogue):
        return [turn.id for turn in dialogue.turns], replace(dialogue, turns=(), drops_text=False)

    assert list(map(rest, never)) == list(map(rest, often))


def test_with_switch_1_no_speaker_has_two_turns_in_a_row(samples, mix):
    """References count as turns: continuing in the last voice is always wrong."""
    same = Counter()
    for switch in (0.0, 1.0):
        several = replace(mix, several=1.0, more_turns=(0.3, 0.4, 0.3), switch=switch)
        composer = Composer(samples, {"ava": "Ava"}, "ava", several)
        for n in range(200):
            dialogue = composer.compose(n % len(samples), torch.Generator().manual_seed(n))
            speakers = speaker_numbers(dialogue)
            if len(set(speakers)) > 1:
                pairs = itertools.pairwise(speakers[dialogue.first_trained - 1 :])
                same[switch] += sum(one == other for one, other in pairs)
    assert same[0.0] > 100
    assert same[1.0] == 0


def test_a_clip_follows_the_reference_that_it_names_and_keeps_its_scene(samples, mix):
    first = replace(samples[2], reference=samples[5].id, scene="A cathedral.")
    composer = Composer(
        [first, *samples[3:16]], {"ava": "Ava"}, "ava", replace(mix, several=0.0, cast=0.0, reference=0.0, joined=0.5)
    )
    drawn = [composer.compose(0, torch.Generator().manual_seed(n)) for n in range(40)]
    joined = [dialogue for dialogue in drawn if "+" in dialogue.turns[-1].id]
    assert 0 < len(joined) < 40
    for dialogue in drawn:
        assert samples[5].id in clip_ids(dialogue.turns[-1]) or clip_ids(dialogue.turns[0]) == [samples[5].id]
        assert dialogue.scene == "A cathedral."
        assert len(dialogue.turns) > 1
    plain = composer.compose(2, torch.Generator().manual_seed(0))
    assert plain.scene is None


def test_a_clip_whose_named_reference_is_missing_gets_another_one(samples, mix):
    first = replace(samples[2], reference="gone")
    dialogue = Composer([first, *samples[3:8]], {}, "", mix).compose(0, torch.Generator().manual_seed(0))
    assert len(dialogue.turns) > 1


def test_a_switch_draws_any_index_but_the_previous_one():
    draws = Draws(torch.Generator().manual_seed(0))
    assert {draws.switched(1, 1, 3, probability=1.0) for _ in range(40)} == {0, 2}
    assert draws.switched(0, 1, 3, probability=1.0) == 0
    assert draws.switched(0, 0, 1, probability=1.0) == 0


def test_the_number_of_turns_in_between_is_that_of_the_mix(samples):
    mix = ExampleMix(reference=1.0, reference_frames=(20, 30), more_turns=(0.0, 0.0, 0.0, 1.0))
    composer = Composer(samples, {}, "", mix)
    turns = [len(composer.compose(n, torch.Generator().manual_seed(n)).turns) for n in range(len(samples))]
    assert set(turns) == {5}


def test_a_speaker_without_profile_always_has_a_reference(samples):
    """Even if every other clip is longer than a reference may be."""
    composer = Composer(samples, {}, "", ExampleMix(reference_frames=(1, 2)))
    assert all(composer.compose(n, torch.Generator().manual_seed(n)).first_trained for n in range(len(samples)))


def test_the_shares_of_prompt_forms_and_numbers_of_speakers_sum_to_1():
    for shares in ([s for s, *_ in CLONE_FORMS], [s for s, *_ in SEVERAL_FORMS], NUM_SPEAKERS):
        assert sum(shares) == pytest.approx(1.0)
