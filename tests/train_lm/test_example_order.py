"""Tests of the conversations of a run and their order."""

import itertools
from collections import Counter

import torch

from higgs_audio.train_lm.batches import BatchOrder, dialogue_batches
from higgs_audio.train_lm.composer import Composer, ExampleMix


def test_a_reference_is_another_clip_of_the_same_speaker(clips):
    composer = Composer(clips, {"ava": "Ava"}, "ava", ExampleMix(reference=0.5, plain=0.4))
    kinds = Counter()
    for draw in range(300):
        number = draw % len(clips)
        dialogue = composer.compose(number, torch.Generator().manual_seed(draw))
        assert dialogue.turns[-1] is clips[number]
        assert {turn.speaker for turn in dialogue.turns} == {clips[number].speaker}
        assert len({turn.id for turn in dialogue.turns}) == len(dialogue.turns)
        kinds[(clips[number].speaker, min(2, len(dialogue.turns)), dialogue.profile)] += 1
    assert kinds[("joe", 2, None)] == 150, "a speaker without a profile always has a reference"
    assert set(kinds) == {("joe", 2, None), ("ava", 2, "Ava"), ("ava", 2, None), ("ava", 1, None), ("ava", 1, "Ava")}
    assert 50 < kinds[("ava", 2, "Ava")] + kinds[("ava", 2, None)] < 100


def test_the_first_steps_use_the_shorter_half_of_the_clips_and_the_rest_all(clips):
    order = BatchOrder(positions=250, num_short=20, seed=0)
    composer = Composer(clips, {"ava": "Ava", "joe": "Joe"}, "ava", ExampleMix())

    def ids_from(start):
        batches = itertools.islice(dialogue_batches(composer, clips, order, start), 40 - start)
        return [[dialogue.turns[-1].id for dialogue in batch] for batch in batches]

    whole = ids_from(0)
    sizes = [clip.num_frames + len(clip.phonemes) for clip in clips]
    short = {clips[n].id for n in sorted(range(len(clips)), key=sizes.__getitem__)[:3]}
    assert set(itertools.chain(*whole[:20])) == short
    assert set(itertools.chain(*whole[20:])) == {clip.id for clip in clips}
    for start in (1, 19, 20, 33):
        assert ids_from(start) == whole[start:]
