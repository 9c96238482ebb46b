"""Training on conversations: references of several clips, several speakers, checkpoints to start from.

The sounds are random codes and the alignments made up, so every position can be told from every other.
"""

import itertools
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpus import TEXTS

from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.data.phones import phone_ids, phones
from higgs_audio.data.shards import EncodedClip
from higgs_audio.errors import RecipeError
from higgs_audio.generation.guidance import mask_last_text
from higgs_audio.model.model import IGNORED, HiggsAudioForConditionalGeneration
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.prompt.prompt import MULTI_SPEAKER
from higgs_audio.text.phonemes import phonemize
from higgs_audio.train_codec import teacher
from higgs_audio.train_lm import batches
from higgs_audio.train_lm import composer as composers
from higgs_audio.train_lm.batches import BatchOrder, MicroBatcher, Windows, dialogue_batches, training_steps
from higgs_audio.train_lm.collate import Batch, collate, pad_behind
from higgs_audio.train_lm.composer import (
    CLONE_FORMS,
    QUIET_ROOM,
    SAME_VOICE,
    SEVERAL_SPEAKERS,
    Composer,
    ExampleMix,
    join,
)
from higgs_audio.train_lm.recipe import LanguageModelRecipe, mix_of
from higgs_audio.train_lm.start import first_model, new_model
from higgs_audio.train_lm.targets import NAMED_COLUMNS

ROOT = Path(__file__).parents[2]
SPEAKERS = ("ava", "joe", "tom", "kim", "zoe")
MIX = ExampleMix(reference=0.5, plain=0.5, several=0.4, cast=0.3, joined=0.3, reference_frames=(40, 90))


def make_sample(number, speaker, num_frames):
    text = TEXTS[number % len(TEXTS)]
    rng = np.random.default_rng((number, len(speaker)))
    heard = np.linspace(0, len(phones(text)) - 1, num_frames).astype(np.uint16)
    return EncodedClip(
        f"{speaker}-{number}", text, phonemize(text), speaker, rng.integers(0, 1024, (8, num_frames)), heard
    )


@pytest.fixture(scope="module")
def samples():
    return [make_sample(n, speaker, 18 + 3 * n) for speaker in SPEAKERS for n in range(8)]


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return HiggsAudioProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def dialogues(samples):
    composer = Composer(samples, {"ava": "Ava", "joe": "Joe"}, "ava", MIX)
    drawn = itertools.product(range(20), range(len(samples)))
    return [composer.compose(n, torch.Generator().manual_seed(1000 * epoch + n)) for epoch, n in drawn]


def clips_of(turn):
    return turn.id.split("+")


def speakers_of(dialogue):
    return dialogue.speakers or (0,) * len(dialogue.turns)


def test_no_clip_is_heard_twice_in_a_conversation(dialogues):
    """Or the answer could be copied from its own reference."""
    for dialogue in dialogues:
        clips = [clip for turn in dialogue.turns for clip in clips_of(turn)]
        assert len(clips) == len(set(clips))


def test_every_conversation_ends_with_the_sample_it_is_composed_for(dialogues, samples):
    for dialogue, sample in zip(dialogues, samples * 20, strict=True):
        assert clips_of(dialogue.turns[-1])[-1] == sample.id


def test_one_number_is_one_voice(dialogues):
    for dialogue in dialogues:
        voices = {(number, turn.speaker) for number, turn in zip(speakers_of(dialogue), dialogue.turns, strict=True)}
        assert len(voices) == len({number for number, _ in voices}) == len({voice for _, voice in voices})


def test_a_trained_turn_has_a_voice_that_is_named_or_was_heard(dialogues):
    """And the first turn of a voice that is neither is not trained, unless it is the only one."""
    for dialogue in dialogues:
        numbers, first = speakers_of(dialogue), dialogue.first_trained
        named = {0} if dialogue.profile else set(dialogue.profiles)
        for place in range(first, len(numbers)):
            alone = len(numbers) == 1 and dialogue.turns[0].speaker == "ava"
            assert alone or numbers[place] in named or numbers[place] in numbers[:place]
        assert first == 0 or numbers[first - 1] not in {*named, *numbers[: first - 1]}


def test_references_are_as_long_as_the_mix_says_where_a_speaker_has_clips_enough(dialogues):
    lengths = [turn.num_frames for dialogue in dialogues for turn in dialogue.turns[: dialogue.first_trained]]
    assert max(lengths) <= 90
    assert np.mean([length >= 40 for length in lengths]) > 0.8
    assert any("+" in turn.id for dialogue in dialogues for turn in dialogue.turns[: dialogue.first_trained])


def test_all_kinds_of_conversation_occur(dialogues):
    def kind(dialogue):
        if dialogue.speakers:
            return "cast" if dialogue.profiles else f"several {len(set(dialogue.speakers))}"
        if dialogue.first_trained or len(dialogue.turns) > 1:
            return "named after a reference" if dialogue.profile else "clone"
        return "named" if dialogue.profile else "plain"

    kinds = Counter(map(kind, dialogues))
    assert set(kinds) == {"cast", "several 2", "several 3", "several 4", "clone"} | {
        "named",
        "plain",
        "named after a reference",
    }
    assert min(kinds.values()) >= 5


def test_the_prompts_are_those_of_the_published_examples(dialogues, processor):
    """Whole texts that are single tokens of nano's tokenizer, so the character for character form matters."""
    clone = next(d for d in dialogues if d.system == SAME_VOICE and d.scene and len(d.turns) == 2)
    system, user, assistant, asked, _ = clone.messages()
    assert system["content"] == f"{SAME_VOICE}\n\n<|scene_desc_start|>\n{QUIET_ROOM}\n<|scene_desc_end|>"
    assert (user["content"], asked["content"]) == tuple(turn.text for turn in clone.turns)
    assert np.array_equal(assistant["content"][0]["codes"], clone.turns[0].codes)
    several = next(d for d in dialogues if d.system == SEVERAL_SPEAKERS and len(set(d.speakers)) == 2)
    messages = several.messages()
    assert messages[0] == {"role": "system", "content": SEVERAL_SPEAKERS}
    assert [m["content"] for m in messages if m["role"] == "user"] == [
        f"[SPEAKER{number}] {turn.text}" for number, turn in zip(several.speakers, several.turns, strict=True)
    ]
    for text in (SAME_VOICE, QUIET_ROOM, SEVERAL_SPEAKERS, MULTI_SPEAKER, "[SPEAKER1] "):
        assert len(processor.tokenizer.tokenize(text)) == 1


def test_labels_are_the_frames_of_the_trained_turns_alone(dialogues, processor):
    chosen = [d for d in dialogues if d.first_trained][:6] + [d for d in dialogues if d.profiles][:2]
    batch = collate(chosen, processor)
    for row, dialogue in enumerate(chosen):
        labels = batch.inputs["audio_labels"][row]
        trained = labels[(labels[:, 0] != IGNORED) & (labels[:, 0] < 1024), 0].numpy()
        wanted = [turn.codes[0] for turn in dialogue.turns[dialogue.first_trained :]]
        assert np.array_equal(trained, np.concatenate(wanted))


def test_references_are_labelled_from_a_column_on_where_the_recipe_says_so(dialogues, processor):
    chosen = [d for d in dialogues if d.first_trained][:6]
    without, batch = collate(chosen, processor), collate(chosen, processor, reference_labels_after=25)
    assert torch.equal(batch.turn_labels, without.inputs["audio_labels"])
    for row, dialogue in enumerate(chosen):
        labels, columns = batch.inputs["audio_labels"][row], batch.inputs["audio_input_ids"][row]
        start = 0
        for number, turn in enumerate(dialogue.turns):
            length = turn.num_frames + 9
            first = start + (25 if number < dialogue.first_trained else 0)
            labelled = labels[first : start + length]
            assert bool((labels[start:first] == IGNORED).all())
            codes = labelled[(labelled[:, 0] != IGNORED) & (labelled[:, 0] < 1024), 0]
            skipped = max(0, first - start - 1)  # the first column is the stream's beginning
            assert np.array_equal(codes.numpy(), turn.codes[0, skipped:])
            ends = (labelled == 1025).sum(0)
            assert ends.tolist() == [1] * 8
            cells = labelled != IGNORED
            assert torch.equal(labelled[cells], columns[first : start + length][cells])
            start += length


def test_padding_is_behind_and_what_is_padded_there_changes_nothing(dialogues, processor, tiny_checkpoint):
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


def test_the_guide_looks_at_the_text_of_the_turn_that_sounds(dialogues, processor):
    """Not at the reference's, nor, in a joined turn, at the sentence before.

    Behind a speaker's tag it once looked one phoneme too far to the left.
    """
    several = [d for d in dialogues if len(d.turns) > 2 and any("+" in turn.id for turn in d.turns)][:4]
    batch = collate(several, processor)
    column_ids = processor.tokenizer.convert_tokens_to_ids(["<|AUDIO_OUT|>", "<|reserved_special_token_6|>"])
    for row, dialogue in enumerate(several):
        ids = batch.inputs["input_ids"][row]
        places = torch.isin(ids, torch.tensor(column_ids)).nonzero().squeeze(1).tolist()
        start, seen_before = 0, -1
        for turn in dialogue.turns:
            spoken = phones(turn.text)
            look = batch.look[row, places[start : start + turn.num_frames]].tolist()
            names = [processor.tokenizer.convert_ids_to_tokens(int(ids[place])) for place in look]
            assert names == [spoken[phone] for phone in turn.phones]
            assert look == sorted(look)
            assert look[0] > seen_before
            seen_before = look[-1]
            columns = places[start : start + turn.num_frames]
            assert batch.phones[row, columns].tolist() == phone_ids("".join(names))
            start += turn.num_frames + 8 + 1


def test_a_prompt_is_no_longer_than_it_says(dialogues, processor):
    """Batches are filled by this number, so one that is too small would overfill memory."""
    for dialogue in dialogues[:60]:
        length = collate([dialogue], processor).inputs["input_ids"].shape[1]
        assert length <= dialogue.num_positions <= length + 30


def test_joined_clips_point_at_the_phones_of_the_whole_text(samples):
    joined = join(samples[:3])
    assert joined.num_frames == sum(sample.num_frames for sample in samples[:3])
    spoken = phones(joined.text)
    names = [phones(sample.text)[phone] for sample in samples[:3] for phone in sample.phones]
    assert [spoken[phone] for phone in joined.phones] == names


def test_a_speaker_with_one_clip_and_no_name_is_left_out(samples):
    """Without a reference its voice would be anybody's, in a prompt that asks for the default voice."""
    few = [samples[0], samples[8], samples[16], samples[17]]
    assert composers.usable(few, {"ava": "Ava"}) == [samples[0], samples[16], samples[17]]


def test_the_only_other_clip_of_a_speaker_is_found(samples):
    composer = Composer(samples[16:18], {}, "", MIX)
    for seed in range(200):
        assert composer.compose(0, torch.Generator().manual_seed(seed)).turns == (samples[17], samples[16])


def test_a_conversation_depends_on_seed_epoch_and_sample_alone(samples):
    order = BatchOrder(positions=900, num_short=0, seed=0)
    composer = Composer(samples, {"ava": "Ava"}, "ava", MIX)

    def turns(start):
        drawn = itertools.islice(dialogue_batches(composer, samples, order, start), 30 - start)
        return [[tuple(turn.id for turn in dialogue.turns) for dialogue in batch] for batch in drawn]

    whole = turns(0)
    assert turns(13) == whole[13:]
    assert whole[0] not in whole[1:]


def test_every_sample_has_its_conversation_once_an_epoch(samples):
    windows = Windows(Composer(samples, {"ava": "Ava"}, "ava", MIX), range(len(samples)), 900, 1)
    for epoch in range(3):
        numbers = range(epoch * windows.per_epoch, (epoch + 1) * windows.per_epoch)
        last = [clips_of(d.turns[-1])[-1] for n in numbers for batch in windows.batches(n) for d in batch]
        assert sorted(last) == sorted(sample.id for sample in samples)


def test_epochs_of_several_windows_have_every_sample_once_too(samples, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW", 7)
    monkeypatch.setattr(batches, "WINDOW_BATCHES", 0)
    test_every_sample_has_its_conversation_once_an_epoch(samples)
    windows = Windows(Composer(samples, {}, "", MIX), range(len(samples)), 900, 1)
    assert windows.per_epoch == 6
    whole = [[d.turns[-1].id for d in batch] for batch in itertools.islice(windows.steps(0), 60)]
    for start in (1, 17, 40):
        rest = itertools.islice(windows.steps(start), 60 - start)
        assert [[d.turns[-1].id for d in batch] for batch in rest] == whole[start:]
    assert windows.find(40)[0] > 1


@pytest.mark.parametrize("start", [0, 5])
def test_other_processes_make_the_batches_that_this_one_makes(samples, processor, start):
    composer, order = Composer(samples, {"ava": "Ava"}, "ava", MIX), BatchOrder(positions=900, num_short=3, seed=0)
    cutter = MicroBatcher(processor, 0, 1, 2, 10, False, 1024, 0, {"ava": 0, "joe": 1})
    ways = (training_steps(composer, samples, order, start, cutter, workers) for workers in (0, 2))
    ways = (
        (cutter.cut(said, 1, 0.2) for said in dialogue_batches(composer, samples, order, start)),
        *((cutter.finish(shares, 1, 0.2) for shares, _ in way) for way in ways),
    )
    for step in itertools.islice(zip(*ways, strict=False), 12):
        assert [len(shares) for shares in step] == [2, 2, 2]
        for same in zip(*step, strict=True):
            arrays = [batch.arrays() for batch in same]
            for other in arrays[1:]:
                assert other.keys() == arrays[0].keys()
                assert all(np.array_equal(other[name], value) for name, value in arrays[0].items())


@pytest.mark.parametrize("start", [2, 3, 4, 9])
def test_a_run_goes_on_at_its_place_without_composing_what_was_before(samples, processor, monkeypatch, start):
    """Finding step 9,000 of a GPU's run took longer than the rest of the run."""
    monkeypatch.setattr(batches, "WINDOW", 7)
    monkeypatch.setattr(batches, "WINDOW_BATCHES", 0)
    composer, order = Composer(samples, {"ava": "Ava"}, "ava", MIX), BatchOrder(positions=900, num_short=3, seed=0)
    cutter = MicroBatcher(processor, 0, 1, 1, 10, False, 1024, 0)
    whole = list(itertools.islice(training_steps(composer, samples, order, 0, cutter, 0), 14))
    monkeypatch.setattr(Windows, "find", lambda self, step: (0, 0) if step == 0 else pytest.fail("it looked for it"))
    place = whole[start - 1][1]
    rest = itertools.islice(training_steps(composer, samples, order, start, cutter, 0, place), 14 - start)
    for (shares, after), (own, own_after) in zip(rest, whole[start:], strict=True):
        assert after == own_after
        for (numbers, batch), (own_numbers, own_batch) in zip(shares, own, strict=True):
            assert numbers == own_numbers
            assert torch.equal(batch.inputs["input_ids"], own_batch.inputs["input_ids"])


def test_a_batch_comes_back_from_its_arrays(dialogues, processor):
    batch = collate(dialogues[:6], processor, 10, {"ava": 0, "joe": 1})
    other = Batch.from_arrays(batch.arrays())
    assert other.num_frames == batch.num_frames
    for name in ("look", "phones", "turn_labels", "said", "who"):
        torch.testing.assert_close(getattr(other, name), getattr(batch, name), rtol=0, atol=0)
    assert other.inputs.keys() == batch.inputs.keys()
    for name, value in batch.inputs.items():
        torch.testing.assert_close(other.inputs[name], value, rtol=0, atol=0)


def test_phonemes_that_are_known_make_the_prompt_that_reading_the_text_makes(dialogues, processor):
    read = pad_behind(
        dict(processor.apply_chat_template([d.messages() for d in dialogues], add_generation_prompt=False))
    )
    known = collate(dialogues, processor).inputs
    assert torch.equal(known["input_ids"], read["input_ids"])
    assert torch.equal(known["audio_input_ids"], read["audio_input_ids"])


def test_an_unread_text_is_hidden_and_teaches_nothing_of_reading(dialogues, processor):
    """What is said, and by whom, is taught all the same."""
    numbers = {speaker: place for place, speaker in enumerate(SPEAKERS)}
    for dialogue in dialogues[:40]:
        read = collate([dialogue], processor, speakers=numbers)
        unread = collate([replace(dialogue, unread=True)], processor, speakers=numbers)
        ids = read.inputs["input_ids"][0]
        assert torch.equal(unread.inputs["input_ids"][0], mask_last_text(ids, processor.tokenizer))
        last = unread.said[0, :, 0] == len(dialogue.turns)
        for name in ("look", "phones"):
            targets, other = getattr(read, name)[0], getattr(unread, name)[0]
            assert bool((targets[last] != IGNORED).any()) and bool((other[last] == IGNORED).all())
            assert torch.equal(other[~last], targets[~last])
        for name in ("labels", "audio_labels", "audio_input_ids", "attention_mask"):
            assert torch.equal(unread.inputs[name], read.inputs[name])
        assert torch.equal(unread.who, read.who)


def test_the_shares_of_a_recipe_are_those_of_the_mix():
    shares = {"reference": 0.11, "plain": 0.12, "several": 0.13, "cast": 0.14, "joined": 0.15, "switch": 0.16}
    shares["unread"] = 0.17
    mix = mix_of(LanguageModelRecipe("", "", "", "", **{f"{name}_share": share for name, share in shares.items()}))
    assert {name: getattr(mix, name) for name in shares} == shares


def clips_of_all(dialogue):
    return [turn.id for turn in dialogue.turns]


def test_a_share_of_the_conversations_is_unread_and_else_the_same(samples):
    """The other draws of a conversation do not change with it."""
    ways = [Composer(samples, {"ava": "Ava"}, "ava", replace(MIX, unread=share)) for share in (0.0, 0.3)]
    drawn = [[way.compose(n % len(samples), torch.Generator().manual_seed(n)) for n in range(300)] for way in ways]
    assert not any(dialogue.unread for dialogue in drawn[0])
    assert 0.2 < sum(dialogue.unread for dialogue in drawn[1]) / 300 < 0.4
    kept = [[(clips_of_all(d), d.profile, d.speakers, d.system, d.scene) for d in way] for way in drawn]
    assert kept[0] == kept[1]


def test_a_speaker_is_named_where_a_trained_turn_begins(dialogues, processor):
    """From the token that predicts the first column on, until the turn's own past tells; references are not."""
    numbers = {speaker: place for place, speaker in enumerate(SPEAKERS)}
    opening = processor.tokenizer.convert_tokens_to_ids("<|audio_out_bos|>")
    for dialogue in dialogues[:60]:
        batch = collate([dialogue], processor, speakers=numbers)
        wanted = torch.full_like(batch.who, IGNORED)
        starts = (batch.inputs["input_ids"][0] == opening).nonzero().squeeze(1).tolist()
        assert len(starts) == len(dialogue.turns)
        for place in range(dialogue.first_trained, len(starts)):
            wanted[0, starts[place] : starts[place] + NAMED_COLUMNS + 1] = numbers[dialogue.turns[place].speaker]
        assert torch.equal(batch.who, wanted)
    assert bool((collate(dialogues[:1], processor).who == IGNORED).all())


def test_a_turn_among_several_is_of_another_speaker_than_the_one_before(samples):
    """References count: a model that goes on in the voice that it heard last is never right."""
    same = Counter()
    for switch in (0.0, 1.0):
        mix = replace(MIX, several=1.0, more_turns=(0.3, 0.4, 0.3), switch=switch)
        composer = Composer(samples, {"ava": "Ava"}, "ava", mix)
        for n in range(200):
            dialogue = composer.compose(n % len(samples), torch.Generator().manual_seed(n))
            speakers = speakers_of(dialogue)
            if len(set(speakers)) > 1:
                pairs = itertools.pairwise(speakers[dialogue.first_trained - 1 :])
                same[switch] += sum(one == other for one, other in pairs)
    assert same[0.0] > 100
    assert same[1.0] == 0


def test_a_clip_is_heard_after_the_one_it_asks_for_and_in_its_scene(samples):
    asking = [replace(samples[2], reference=samples[5].id, scene="A cathedral."), *samples[3:8], *samples[8:16]]
    composer = Composer(asking, {"ava": "Ava"}, "ava", replace(MIX, several=0.0, cast=0.0, reference=0.0, joined=0.5))
    drawn = [composer.compose(0, torch.Generator().manual_seed(n)) for n in range(40)]
    joined = [dialogue for dialogue in drawn if "+" in dialogue.turns[-1].id]
    assert 0 < len(joined) < 40
    for dialogue in drawn:
        asked = samples[5].id in clips_of(dialogue.turns[-1]) or clips_of(dialogue.turns[0]) == [samples[5].id]
        assert asked
        assert dialogue.scene == "A cathedral."
        assert len(dialogue.turns) > 1
    plain = composer.compose(2, torch.Generator().manual_seed(0))
    assert plain.scene is None


def test_a_clip_whose_reference_was_dropped_takes_another(samples):
    asking = [replace(samples[2], reference="gone"), *samples[3:8]]
    dialogue = Composer(asking, {}, "", MIX).compose(0, torch.Generator().manual_seed(0))
    assert len(dialogue.turns) > 1


def test_a_switch_never_draws_the_place_before(samples):
    draft = composers._Draft(samples, {}, {}, replace(MIX, switch=1.0), torch.Generator().manual_seed(0), 0)
    places = {draft._switched(1, 1, 3) for _ in range(40)}
    assert places == {0, 2}
    assert draft._switched(0, 1, 3) == 0
    assert draft._switched(0, 0, 1) == 0


def test_a_batch_is_filled_by_what_its_conversations_turned_out_to_be(samples):
    order = BatchOrder(positions=900, num_short=0, seed=0)
    composer = Composer(samples, {"ava": "Ava"}, "ava", MIX)
    for batch in itertools.islice(dialogue_batches(composer, samples, order, 0), 40):
        assert max(d.num_positions for d in batch) * len(batch) <= 900


@pytest.mark.parametrize("frames", [[60], [0, 60], [80, 60]])
def test_reference_frames_are_a_least_and_a_most(frames):
    with pytest.raises(RecipeError, match="least and the most"):
        mix_of(LanguageModelRecipe("", "", "", "", reference_frames=tuple(frames)))


@pytest.mark.parametrize("turns", [(), (0.0, 0.0), (0.5, -0.1)])
def test_more_turns_are_shares(turns):
    with pytest.raises(RecipeError, match="more_turns"):
        mix_of(LanguageModelRecipe("", "", "", "", more_turns=turns))


def test_as_many_turns_are_heard_between_as_the_mix_says(samples):
    mix = ExampleMix(reference=1.0, reference_frames=(20, 30), more_turns=(0.0, 0.0, 0.0, 1.0))
    composer = Composer(samples, {}, "", mix)
    turns = [len(composer.compose(n, torch.Generator().manual_seed(n)).turns) for n in range(len(samples))]
    assert set(turns) == {5}


def test_a_speaker_who_is_not_named_is_never_asked_for_by_nothing(samples):
    """Where every other clip is longer than a reference may be, the longest reference is better than none."""
    composer = Composer(samples, {}, "", ExampleMix(reference_frames=(1, 2)))
    assert all(composer.compose(n, torch.Generator().manual_seed(n)).first_trained for n in range(len(samples)))


def test_the_shares_of_forms_and_kinds_are_shares():
    for shares in ([s for s, *_ in CLONE_FORMS], [s for s, *_ in composers.SEVERAL_FORMS], composers.NUM_SPEAKERS):
        assert sum(shares) == pytest.approx(1.0)


# Starting from what is there


def lm_recipe(tiny_checkpoint, **fields):
    return LanguageModelRecipe("", "", str(tiny_checkpoint), "", **fields)


def test_a_run_starts_from_a_checkpoint_in_float32(tiny_checkpoint, processor):
    recipe = lm_recipe(tiny_checkpoint, start=str(tiny_checkpoint), text_config={"hidden_size": 999})
    model = first_model(recipe, processor)
    saved = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    weights = dict(model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], weight) for name, weight in saved.named_parameters())


def test_a_checkpoint_with_another_vocabulary_is_no_start(tiny_checkpoint, processor, tmp_path):
    text = {**saved_text(tiny_checkpoint), "vocab_size": 40}
    new_model(lm_recipe(tiny_checkpoint, text_config=text), processor).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="reads 40 text tokens"):
        first_model(lm_recipe(tiny_checkpoint, start=str(tmp_path)), processor)


def saved_text(folder):
    config = HiggsAudioForConditionalGeneration.from_pretrained(folder).model.text_config
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {name: getattr(config, name) for name in (*names, "head_dim")}


def test_a_teacher_is_the_tokenizers_own_hubert_under_a_head_that_alone_is_trained(tiny_checkpoint):
    codec = HiggsAudioTokenizer.from_pretrained(tiny_checkpoint / "codec").eval()
    hearing = teacher.teacher_of(str(tiny_checkpoint / "codec"), seed=0).eval()
    trained = [name for name, weight in hearing.named_parameters() if weight.requires_grad]
    assert trained == ["lm_head.weight", "lm_head.bias"]
    sound = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = codec.semantic_model(sound).last_hidden_state
        assert torch.equal(hearing.hubert(sound).last_hidden_state, wanted)


# The material


@pytest.fixture
def speech(monkeypatch):
    """The recipe's module that speaks the material."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "nano"))
    yield pytest.importorskip("speech")
    sys.modules.pop("speech", None)


def test_no_speaker_of_training_is_among_the_unseen(speech, tmp_path):
    (tmp_path / "heldout.txt").write_text("One is held out.\n", encoding="utf-8")
    lines = "\n".join(f"Sentence {n}." for n in range(4000))
    (tmp_path / "train.txt").write_text(lines + "\n", encoding="utf-8")
    jobs = list(speech.jobs(tmp_path))
    speakers = {split: {job["speaker"] for job in jobs if job["split"] == split} for split in ("train", "unseen")}
    assert not speakers["train"] & speakers["unseen"]
    assert len(speakers["train"]) > 80
    assert sum(voice.share for voice in speech.VOICES.values()) == pytest.approx(1.0)
    assert jobs == list(speech.jobs(tmp_path))
