"""Tests of the models in transformers' Trainer and with PEFT."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gradients import NUM_ROWS, make_rows, train
from oracle import make_config
from rows import collate

from higgs_audio.errors import CheckpointError, OptionError
from higgs_audio.model.model import HiggsAudioForConditionalGeneration

HELPER = Path(__file__).parents[1] / "helpers" / "gradients.py"


@pytest.fixture
def small():
    torch.manual_seed(0)
    return HiggsAudioForConditionalGeneration(make_config())


@pytest.fixture(scope="module")
def rows():
    return make_rows()


def test_the_gradient_of_trainer_is_the_same_for_1_2_and_4_accumulation_steps(small, rows, tmp_path):
    whole = train(copy.deepcopy(small), rows, tmp_path, 8, 1)
    loss = small(**collate(*rows, labels=True)).loss
    loss.backward()
    for name, weight in small.named_parameters():
        torch.testing.assert_close(whole[name], -weight.grad, rtol=1e-3, atol=1e-4)
    for accumulation in (2, 4):
        parts = train(copy.deepcopy(small).requires_grad_(True), rows, tmp_path, NUM_ROWS // accumulation, accumulation)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_gradient_of_trainer_is_the_same_with_two_processes(small, rows, tmp_path):
    small.save_pretrained(tmp_path / "model")
    whole = train(small, rows, tmp_path, NUM_ROWS, 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HELPER)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HELPER.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    parts = [torch.load(tmp_path / f"change-{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name], value, rtol=1e-3, atol=1e-4)
        assert torch.equal(parts[0][name], parts[1][name])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads it
def test_an_adapter_for_causal_language_models_trains_and_is_loaded_by_its_folder(small, rows, tmp_path):
    peft = pytest.importorskip("peft")
    small.save_pretrained(tmp_path / "base")
    base = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    batch = collate(*rows[:2], labels=True)
    optimizer = torch.optim.Adam([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.02)
    losses = []
    for _ in range(6):
        loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted.eval()(**batch).logits
        loaded = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "adapter")
        torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-4, atol=1e-4)
        plain = HiggsAudioForConditionalGeneration.from_pretrained(tmp_path / "base")
        assert float((plain(**batch).logits - expected).abs().max()) > 1e-2


def test_an_adapter_without_a_base_model_is_a_checkpoint_error(tmp_path):
    for content, message in (("{}", "no base_model_name_or_path"), ("[", "cannot be read")):
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            HiggsAudioForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_msk": None}, "did you mean 'attention_mask'"),
        ({"cache": None}, "forward has no argument 'cache'"),
        ({"num_items_in_batch": 3}, "forward has no argument"),
        ({"return_dict": False}, "always a dict-like object"),
        ({"output_attentions": True}, "attention weights are not returned"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "give input_ids"),
    ],
)
def test_an_argument_that_forward_does_not_have_is_refused_by_name(small, rows, options, message):
    batch = collate(*rows[:1], labels=True)
    for model in (small, small.model):
        with pytest.raises(OptionError, match=message):
            model(**{name: batch[name] for name in ("input_ids", "audio_input_ids")}, **options)


def test_neutral_values_of_other_models_options_change_nothing(small, rows):
    batch = collate(*rows[:1], labels=True)
    neutral = {"return_dict": True, "output_attentions": None, "inputs_embeds": None}
    with torch.no_grad():
        assert torch.equal(small(**batch, **neutral).loss, small(**batch).loss)
