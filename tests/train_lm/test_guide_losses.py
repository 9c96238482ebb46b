"""Tests of the losses of the guide, compared with attention weights of the eager implementation."""

import pytest
import torch
from corpus import TEXT
from runs import tiny_model
from torch.overrides import TorchFunctionMode

from higgs_audio.data.phones import PHONES
from higgs_audio.delay import IGNORE_INDEX
from higgs_audio.train_lm.collate import collate
from higgs_audio.train_lm.examples import Dialogue
from higgs_audio.train_lm.guide import GUIDED_HEAD, VOICE_HEAD, Guide, has_earlier_turn


class RecordedSoftmax(TorchFunctionMode):
    """A context that records the results of `Tensor.softmax`."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.softmax:
            self.results.append(result)
        return result


def attention_weights(model, batch):
    """Returns the attention weights `[B, N, T, T]` of each layer in one forward pass; eager attention has no other
    softmax."""
    model.set_attn_implementation("eager")
    with RecordedSoftmax() as recorded:
        model(**batch.inputs, only_loss=True)
    return recorded.results


def test_the_attention_loss_is_computed_from_the_weights_of_the_model(clips, processor):
    text = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model(processor, text)
    guide = Guide(model, (0, 1), 1, len(PHONES) + 1)
    batch = collate([Dialogue((clips[0], clips[2])), Dialogue((clips[1],), "Joe")], processor)
    layers = attention_weights(model, batch)
    rows, positions = (batch.attention_targets >= 0).nonzero(as_tuple=True)
    targets = batch.attention_targets[rows, positions]
    expected = [-weights[rows, GUIDED_HEAD, positions, targets].log().sum() for weights in layers]
    loss = guide.attention_loss(batch.attention_targets)
    assert len(expected) == 2
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
    guide.close()
    model(**collate([Dialogue((clips[3],), "Joe")], processor).inputs, only_loss=True)
    assert torch.equal(guide.attention_loss(batch.attention_targets), loss), (
        "a closed guide still records forward passes"
    )


def test_the_voice_loss_is_computed_from_the_weights_on_earlier_turns_of_a_speaker(clips, processor):
    text = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model(processor, text)
    guide = Guide(model, (0,), 1, len(PHONES) + 1, voice_layers=(0, 1))
    several = Dialogue((clips[0], clips[1], clips[2], clips[4]), speakers=(0, 1, 1, 0))
    batch = collate([several, Dialogue((clips[1],), "Joe")], processor)
    layers = attention_weights(model, batch)
    opening = processor.tokenizer.convert_tokens_to_ids("<|audio_out_bos|>")
    starts = (batch.inputs["input_ids"][0] == opening).nonzero().squeeze(1) + 1
    lengths = [turn.num_frames + 9 for turn in several.turns]
    spans = [list(range(start, start + length)) for start, length in zip(starts.tolist(), lengths, strict=True)]
    total = 0.0
    for weights in layers:
        head = weights[0, VOICE_HEAD].detach()
        for turn, past in ((2, 1), (3, 0)):
            total -= sum(float(head[i, spans[past]].sum().log()) for i in spans[turn]) / len(layers)
    assert float(guide.voice_loss(batch.turn_speakers).detach()) == pytest.approx(total, rel=1e-4)
    assert has_earlier_turn(batch.turn_speakers).sum(1).tolist() == [len(spans[2]) + len(spans[3]), 0]
    guide.close()


def test_the_name_loss_is_the_cross_entropy_of_a_middle_layer_at_the_start_of_turns(clips, processor):
    model = tiny_model(processor, TEXT)
    guide = Guide(model, (0,), 1, len(PHONES) + 1, name_layer=0, num_speakers=3)
    dialogues = [Dialogue((clips[0], clips[2])), Dialogue((clips[1],), "Joe")]
    batch = collate(dialogues, processor, speakers={"ava": 2, "joe": 1})
    inputs = {name: value for name, value in batch.inputs.items() if "labels" not in name}
    hidden = model.model(**inputs, output_hidden_states=True).hidden_states[1]  # [B, T, D] behind layer 0
    loss, right = guide.name_loss(batch.speaker_labels)
    logits = guide.name_head(hidden)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.speaker_labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    assert set(batch.speaker_labels[batch.speaker_labels != IGNORE_INDEX].tolist()) == {1, 2}
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert int(right) == int(
        ((logits.argmax(-1) == batch.speaker_labels) & (batch.speaker_labels != IGNORE_INDEX)).sum()
    )
    loss.backward()
    assert bool(model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0)
    assert model.model.layers[1].self_attn.k_proj.weight.grad is None
    guide.close()
