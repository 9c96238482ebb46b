"""Tests of classifier-free guidance, which amplifies the effect of the text on the logits."""

import pytest
import torch

from higgs_audio import NANO, HiggsAudioForConditionalGeneration, HiggsAudioProcessor
from higgs_audio.errors import OptionError, PromptError
from higgs_audio.generation.guidance import apply_guidance, mask_last_text
from higgs_audio.generation.loop import generate
from higgs_audio.prompt.prompt import Prompt, Turn, to_messages


@pytest.fixture(scope="module")
def model():
    return HiggsAudioForConditionalGeneration.from_pretrained(NANO)


@pytest.fixture(scope="module")
def processor():
    return HiggsAudioProcessor.from_pretrained(NANO)


def prompt(processor, *texts):
    """Returns a batch with one prompt for each text."""
    conversations = [to_messages(Prompt((Turn(text, "SPEAKER1"),), profiles={"SPEAKER1": "Ava"})) for text in texts]
    return processor.apply_chat_template(conversations, force_audio=True, output_labels=False)


def columns(output, row=0):
    (segment,) = output.audio_sequences[row]
    return segment.tolist()


OPTIONS = {"max_new_tokens": 30, "seed": 3, "temperature": 0.8}


def test_the_last_text_is_masked_and_its_speaker_tag_is_not(processor):
    turns = (Turn("Hello there.", "SPEAKER0", torch.zeros(8, 4).long().numpy()), Turn("And you?", "SPEAKER1"))
    ids = processor.apply_chat_template(to_messages(Prompt(turns)), force_audio=True, output_labels=False).input_ids[0]
    masked = mask_last_text(ids, processor.tokenizer)
    changed = (ids != masked).nonzero().squeeze(1).tolist()
    text = processor.tokenizer.decode(ids[changed])
    assert changed == list(range(changed[0], changed[-1] + 1))
    assert processor.tokenizer.decode(ids[changed[0] - 1]) == "[SPEAKER1] "
    assert processor.tokenizer.decode(ids[changed[-1] + 1]) == "<|eot_id|>"
    assert "SPEAKER" not in text and len(text) > 3
    assert set(masked[changed].tolist()) == {processor.tokenizer.pad_token_id}


def test_a_prompt_without_a_user_turn_has_nothing_to_mask(processor):
    with pytest.raises(PromptError, match="no user turn"):
        mask_last_text(torch.tensor([0, 1]), processor.tokenizer)


def test_a_scale_of_two_adds_the_difference_once_more():
    conditional, negative = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.5, 3.0, -4.0]])
    assert apply_guidance(torch.cat([conditional, negative]), 2.0, 2)[:, :2].tolist() == [[1.5, 1.0]]
    torch.testing.assert_close(apply_guidance(torch.cat([conditional, negative]), 1.0, 2), conditional)


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_stream_eos_keeps_its_conditional_probability(scale):
    """Earlier, with a guided probability, a sentence of 22 words ended after 1.4 seconds."""
    logits = torch.randn(2, 3, 1026, generator=torch.Generator().manual_seed(1))
    wanted = logits[:1].softmax(-1)[..., 1025]
    torch.testing.assert_close(apply_guidance(logits, scale, 1025).softmax(-1)[..., 1025], wanted)


def test_guidance_with_the_same_prompt_as_negative_changes_nothing(model, processor):
    inputs = prompt(processor, "Good morning.")
    plain = generate(model, **inputs, **OPTIONS, text_guidance_scale=1.0)
    same = generate(model, **inputs, **OPTIONS, text_guidance_scale=3.0, negative_prompt_ids=inputs.input_ids)
    assert columns(same) == columns(plain)


def test_guidance_is_the_same_in_a_batch_and_alone(processor):
    """In float64: guidance amplifies the rounding errors that padding causes."""
    model = HiggsAudioForConditionalGeneration.from_pretrained(NANO, dtype=torch.float64)
    texts = ("Good morning.", "The boat lay at the quay all day.")
    options = {**OPTIONS, "text_guidance_scale": 1.5, "tokenizer": processor.tokenizer}
    both = generate(model, **prompt(processor, *texts), **{**options, "seed": [3, 3]})
    for row, text in enumerate(texts):
        assert columns(both, row) == columns(generate(model, **prompt(processor, text), **options))


def test_guidance_equals_two_forward_passes_combined_by_hand(model, processor):
    inputs = prompt(processor, "Good morning.")
    options = {"max_new_tokens": 6, "do_sample": False}
    output = generate(model, **inputs, **options, text_guidance_scale=2.5, tokenizer=processor.tokenizer)
    masked = mask_last_text(inputs.input_ids[0], processor.tokenizer)[None]
    (segment,) = output.audio_sequences[0]  # [K, 6], bos column first
    first = segment.T[None, :3]
    placeholders = torch.full((1, 3), model.config.audio_out_token_idx)
    logits = []
    for ids in (inputs.input_ids, masked):
        out = model(input_ids=torch.cat([ids, placeholders], 1), audio_input_ids=first)
        logits.append(out.logits[0, -1, :3])  # codebooks that have begun by the fourth column
    best = (logits[1] + 2.5 * (logits[0] - logits[1]))[:, :1024].argmax(-1)
    assert best.tolist() == segment[:3, 3].tolist()


def test_guidance_without_a_tokenizer_or_negative_prompts_is_an_error(model, processor):
    inputs = prompt(processor, "Good morning.")
    with pytest.raises(OptionError, match=r"text_guidance_scale=1\.5 needs tokenizer="):
        generate(model, **inputs, text_guidance_scale=1.5)
    with pytest.raises(PromptError, match="must have the shape of input_ids"):
        generate(model, **inputs, text_guidance_scale=1.5, negative_prompt_ids=inputs.input_ids[:, 1:])


def test_the_scale_of_the_checkpoint_applies_where_the_text_can_be_masked(model, processor):
    """The example in the README passes no tokenizer."""
    inputs, scale = prompt(processor, "Good morning."), model.generation_config.text_guidance_scale
    assert scale > 1
    explicit = generate(model, **inputs, **OPTIONS, text_guidance_scale=scale, tokenizer=processor.tokenizer)
    assert columns(generate(model, **inputs, **OPTIONS, tokenizer=processor.tokenizer)) == columns(explicit)
    unguided = generate(model, **inputs, **OPTIONS, text_guidance_scale=1.0)
    assert columns(generate(model, **inputs, **OPTIONS)) == columns(unguided) != columns(explicit)


def test_the_guidance_scale_of_transformers_is_not_set(model):
    """transformers' class for this model rejects it, so a converted nano did not work there."""
    assert model.generation_config.guidance_scale is None


def test_negative_prompts_are_checked_for_unknown_ids(model, processor):
    inputs = prompt(processor, "Good morning.")
    with pytest.raises(PromptError, match="token ids from"):
        generate(model, **inputs, text_guidance_scale=1.5, negative_prompt_ids=inputs.input_ids + 400)


@pytest.mark.parametrize("scale", [0.5, float("inf"), float("nan"), "2", None, True])
def test_a_scale_outside_its_range_is_an_error(model, processor, scale):
    with pytest.raises(OptionError, match="text_guidance_scale"):
        generate(model, **prompt(processor, "Good morning."), text_guidance_scale=scale, tokenizer=processor.tokenizer)
