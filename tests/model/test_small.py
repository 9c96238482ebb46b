"""Tests of the options for small machines: quantized weights, offloaded text weights, the audio tokenizer elsewhere."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from bitsandbytes.nn import Linear4bit
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from higgs_audio import HiggsAudio, HiggsAudioConfig, HiggsAudioForConditionalGeneration
from higgs_audio.cli.main import main
from higgs_audio.codec import HiggsAudioTokenizer
from higgs_audio.engine import Engine
from higgs_audio.errors import MissingExtraError, OptionError
from higgs_audio.model.offload import num_bytes, offload_text
from higgs_audio.model.quantize import WEIGHTS, quantization_config, with_exclusions
from higgs_audio.prompt.processor import HiggsAudioProcessor

TEXT = "The sun sets."
PLAIN = torch.nn.Parameter


def load(folder: Path, **options) -> HiggsAudioForConditionalGeneration:
    return HiggsAudioForConditionalGeneration.from_pretrained(folder, **options).eval()


def quantized(folder: Path, weights: str) -> HiggsAudioForConditionalGeneration:
    return load(folder, quantization_config=quantization_config(weights, torch.float32), device_map={"": "cpu"})


def users_config(weights: str):
    """Returns a config without exclusions, as a user of transformers would write it."""
    if weights == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def matrices(model) -> dict[str, torch.Tensor]:
    """Returns the weights of all linear layers and embeddings."""
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.fixture(scope="module")
def tiny_checkpoint(tiny_checkpoint, tmp_path_factory):
    """The shared tiny checkpoint with matrices of 64 columns: bitsandbytes misreads narrower ones on some CPUs."""
    folder = tmp_path_factory.mktemp("wider") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    config = HiggsAudioConfig.from_pretrained(folder)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    for name, size in {"hidden_size": 64, "intermediate_size": 128, **heads}.items():
        setattr(config.text_config, name, size)
    torch.manual_seed(0)
    HiggsAudioForConditionalGeneration(config).save_pretrained(folder)
    return folder


def plain(weight: torch.Tensor) -> torch.Tensor:
    """Returns the dequantized weight."""
    if (state := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, state)
    return weight.dequantize()


def half_steps(weight: torch.Tensor) -> torch.Tensor:
    """Returns the largest rounding error of each number: half of the widest gap between two levels, times the scale."""
    if (state := getattr(weight, "quant_state", None)) is not None:
        levels = torch.tensor(sorted(get_4bit_type("nf4", device="cpu").tolist()))
        scales = state.absmax.repeat_interleave(state.blocksize)[: state.shape.numel()].view(state.shape)
        return scales * levels.diff().max() / 2
    return (weight.scale / 2).expand(weight.shape)


def mixed_inputs(model, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns a prompt of text and three columns of audio."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 100, (1, 12), generator=generator)
    ids[0, 5:8] = model.config.audio_out_token_idx
    columns = torch.randint(0, 1024, (1, 3, model.config.audio_num_codebooks), generator=generator)
    return {"input_ids": ids, "audio_input_ids": columns}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    out = model(**mixed_inputs(model))
    return torch.cat([out.logits.flatten(), out.text_logits.flatten()])


@pytest.mark.parametrize(
    "make", [quantization_config, lambda weights, dtype: users_config(weights)], ids=["ours", "a user's"]
)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_layers_are_quantized_and_embeddings_heads_and_norms_are_not(tiny_checkpoint, weights, make):
    model = load(tiny_checkpoint, quantization_config=make(weights, torch.float32), device_map={"": "cpu"})
    kinds = {name: type(weight) is not PLAIN for name, weight in matrices(model).items()}
    assert {name for name, fewer_bits in kinds.items() if not fewer_bits} == {
        "model.embed_tokens",
        "model.embed_audio_tokens.embed_audio_tokens",
        "text_lm_head",
        "audio_lm_head",
    }
    assert sum(kinds.values()) == 2 * (4 + 3 + 3)
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if "norm" in name)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_weight_changes_by_more_than_half_a_step(tiny_checkpoint, weights):
    exact, rounded = matrices(load(tiny_checkpoint)), matrices(quantized(tiny_checkpoint, weights))
    for name, weight in rounded.items():
        if type(weight) is not PLAIN:
            assert ((plain(weight) - exact[name]).abs() <= half_steps(weight) * (1 + 2**-14)).all(), name


@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_are_those_of_the_dequantized_weights(tiny_checkpoint, weights):
    """Quantized products add no error: the plain model with dequantized weights has the same logits. bitsandbytes
    multiplies in bfloat16 on CPUs that support it, which rounds once more; the test disables this."""
    fewer, model = quantized(tiny_checkpoint, weights), load(tiny_checkpoint)
    for module in fewer.modules():
        if isinstance(module, Linear4bit):
            assert hasattr(module, "support_avx512bf16_for_cpu")
            module.support_avx512bf16_for_cpu = False
    rounded = {name: plain(weight) for name, weight in matrices(fewer).items() if type(weight) is not PLAIN}
    for name, weight in rounded.items():
        model.get_submodule(name).weight.data = weight
    assert (logits(fewer) - logits(model)).abs().max() < 1e-5


@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_change_no_more_than_with_noise_of_the_same_size(tiny_checkpoint, weights):
    """Rounding errors are at most half a quantization step: uniform noise of this size changes the logits at least as
    much."""
    fewer, model = quantized(tiny_checkpoint, weights), load(tiny_checkpoint)
    exact = logits(model)
    error = (logits(fewer) - exact).square().mean().sqrt()
    torch.manual_seed(0)
    for name, weight in matrices(fewer).items():
        if type(weight) is not PLAIN:
            noise = half_steps(weight) * (
                2 * torch.rand(weight.shape if weights == "int8" else weight.quant_state.shape) - 1
            )
            model.get_submodule(name).weight.data += noise
    allowed = (logits(model) - exact).square().mean().sqrt()
    assert 0 < error < 1.25 * allowed


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_quantized_model_generates_speech(tiny_checkpoint, weights):
    tts = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu", weights=weights)
    speech = tts.generate(TEXT, seed=1)
    assert len(speech.waveform.samples) == 960 * speech.codes.shape[1] > 0


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_quantized_model_is_smaller_on_disk_and_loads_unchanged(tiny_checkpoint, tmp_path, weights):
    model = quantized(tiny_checkpoint, weights)
    shutil.copytree(tiny_checkpoint, tmp_path / "saved")
    before = (tmp_path / "saved" / "model.safetensors").stat().st_size
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < before
    tts = HiggsAudio.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(logits(tts.model), logits(model))
    with pytest.raises(OptionError, match=r"was saved quantized by \w+; omit weights"):
        HiggsAudio.from_pretrained(tmp_path / "saved", device="cpu", weights=weights)


# Text weights in host memory.


def offloaded(folder: Path, weights: str | None, device: str):
    model = load(folder) if weights is None else quantized(folder, weights)
    return model, offload_text(model, device)


@pytest.mark.parametrize("weights", [None, *WEIGHTS])
def test_offloading_text_weights_changes_no_code_and_copies_each_layer_once(tiny_checkpoint, weights):
    tts = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu", weights=weights)
    codes = tts.generate(TEXT, seed=1).codes
    offload = offload_text(tts.model, "cpu")
    heads = []
    tts.model.text_lm_head.register_forward_hook(lambda module, args, output: heads.append(output.shape))
    assert (tts.generate(TEXT, seed=1).codes == codes).all()
    assert codes.shape[1] > 2
    # Only the text is copied; what precedes it must be prefilled again the first time.
    sent, num_bytes_sent = offload.layers_copied, offload.bytes_copied
    assert (tts.generate(TEXT, seed=1).codes == codes).all()
    assert offload.layers_copied - sent == offload.num_layers == 2  # by the text; audio steps copy nothing
    assert heads == []  # an utterance is audio, so no text logits are computed
    sizes = [num_bytes(p) for name, p in tts.model.named_parameters() if ".mlp." in name]
    assert offload.bytes_copied - num_bytes_sent == sum(sizes)


@pytest.mark.parametrize("weights", [None, *WEIGHTS])
def test_an_audio_step_needs_no_text_weight_on_the_device(tiny_checkpoint, weights):
    """The meta device has shapes but no data; an operation with a weight in host memory would fail."""
    model, offload = offloaded(tiny_checkpoint, weights, "meta")
    places = {name: weight.device.type for name, weight in model.named_parameters()}
    assert {name for name, place in places.items() if place == "cpu"} == {
        name for name in places if ".mlp." in name or "embed_tokens" in name or "text_lm_head" in name
    }
    assert model.device.type == "meta"
    columns = torch.zeros(1, 1, model.config.audio_num_codebooks, dtype=torch.long, device="meta")
    out = model(audio_input_ids=columns, use_cache=True, with_text=False)
    assert (out.logits.device.type, out.text_logits, offload.layers_copied) == ("meta", None, 0)


@pytest.mark.parametrize("weights", [None, *WEIGHTS])
def test_text_weights_are_copied_to_the_device_and_unchanged_in_host_memory(tiny_checkpoint, weights):
    model, offload = offloaded(tiny_checkpoint, weights, "meta")
    feed = model.model.layers[1].mlp
    before = {name: weight.clone() for name, weight in feed.state_dict().items()}
    rows = torch.zeros(3, model.config.text_config.hidden_size, device="meta")
    assert feed(rows).device.type == "meta"
    assert offload.layers_copied == 1
    assert model.model.embed_tokens(torch.zeros(1, 3, dtype=torch.long)).device.type == "meta"
    after = feed.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        assert after[name].device.type == "cpu"
        exact = (weight.dequantize(), after[name].dequantize()) if weights == "int8" else (weight, after[name])
        assert torch.equal(*exact)


def test_weights_are_restored_when_a_step_fails(tiny_checkpoint):
    model, _ = offloaded(tiny_checkpoint, None, "meta")
    feed = model.model.layers[0].mlp
    with pytest.raises(RuntimeError):
        feed(torch.zeros(3, 5, device="meta"))
    assert {weight.device.type for weight in feed.parameters()} == {"cpu"}


def test_a_pass_over_text_and_audio_has_the_same_logits(tiny_checkpoint):
    model = load(tiny_checkpoint)
    before = logits(model)
    offload = offload_text(model, "cpu")
    assert torch.equal(logits(model), before)
    assert offload.layers_copied == offload.num_layers


def test_a_model_whose_audio_rows_need_the_text_weights_is_rejected(tiny_checkpoint):
    config = load(tiny_checkpoint).config
    config.audio_adapter_type, config.audio_dual_ffn_layers = "stack", []
    with pytest.raises(OptionError, match="no layer of this model has a separate feed-forward network for audio"):
        offload_text(HiggsAudioForConditionalGeneration(config), "cpu")


# The audio tokenizer on another device.


def test_a_model_without_a_text_head_can_be_offloaded(tiny_checkpoint):
    config = HiggsAudioConfig.from_pretrained(tiny_checkpoint, use_text_head=False)
    model = HiggsAudioForConditionalGeneration(config).eval()
    columns = torch.zeros(1, 1, config.audio_num_codebooks, dtype=torch.long)
    before = model(audio_input_ids=columns).logits
    offload = offload_text(model, "cpu")
    assert torch.equal(model(audio_input_ids=columns).logits, before)
    assert offload.layers_copied == 0


def test_offloading_to_an_unknown_device_is_rejected(tiny_checkpoint):
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    with pytest.raises(OptionError, match="device='gpu9' cannot be used here"):
        offload_text(model, "gpu9")


class OnAnotherDevice(HiggsAudioTokenizer):
    """An audio tokenizer on the CPU whose `device` is the meta device; it records the device of the codes that it
    decodes. The meta device has no data, so zeros are decoded."""

    device = torch.device("meta")

    def acoustic_features(self, audio_codes):
        self.seen.add(audio_codes.device.type)
        return super().acoustic_features(torch.zeros(audio_codes.shape, dtype=torch.long))


def test_the_audio_tokenizer_has_its_own_device_and_codes_are_moved_there(tiny_checkpoint):
    tts = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu", codec_device="meta")
    assert (tts.model.device.type, tts.codec.device.type) == ("cpu", "meta")
    tts = HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu")
    voice = tts.voice("ava")
    codes = tts.generate(TEXT, voice, seed=1).codes
    codec = OnAnotherDevice.from_pretrained(tiny_checkpoint)
    codec.seen = set()
    other = HiggsAudio(tts.model, HiggsAudioProcessor(tts.processor.tokenizer, codec, text_frontend="phonemes"))
    other.engine = Engine(tts.model)  # the default one encodes silence
    assert (other.generate(TEXT, voice, seed=1).codes == codes).all()
    assert codec.seen == {"meta"}


# Invalid input.


@pytest.mark.parametrize("weights", ["int4", "INT8", ""])
def test_unknown_weights_are_rejected(tiny_checkpoint, weights):
    with pytest.raises(OptionError, match=r"allowed: 'int8', 'nf4' \(4 bits\), or None"):
        HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu", weights=weights)


def test_an_unknown_device_of_the_audio_tokenizer_is_rejected(tiny_checkpoint):
    with pytest.raises(OptionError, match="codec_device='gpu9' cannot be used here"):
        HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu", codec_device="gpu9")


@pytest.mark.parametrize(("weights", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes"), ("nf4", "accelerate")])
def test_a_missing_package_is_named_with_its_pip_line(tiny_checkpoint, monkeypatch, weights, package):
    monkeypatch.setitem(sys.modules, package, None)  # hides an installed package
    with pytest.raises(MissingExtraError, match=rf"'{package}' is needed .* pip install 'higgs-audio\[quantize\]'"):
        HiggsAudio.from_pretrained(tiny_checkpoint, device="cpu", weights=weights)


def test_a_quantized_checkpoint_without_its_package_is_rejected(tiny_checkpoint, monkeypatch, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao"}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtraError, match="'torchao' is needed"):
        HiggsAudio.from_pretrained(tmp_path / "saved", device="cpu")


def test_a_config_that_cannot_exclude_heads_is_rejected():
    with pytest.raises(OptionError, match="cannot exclude embeddings and heads"):
        with_exclusions(object())
    with pytest.raises(OptionError, match="embeddings and heads are never quantized"):
        with_exclusions(TorchAoConfig(Int8WeightOnlyConfig(), include_input_output_embeddings=True))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quant_method": "magic"},
        {"quant_method": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": "yes"},
        {"quant_method": "torchao"},
        "int8",
        4,
    ],
)
def test_an_invalid_config_is_an_option_error(config, tiny_checkpoint):
    with pytest.raises(OptionError, match="quantization_config"):
        with_exclusions(config)
    with pytest.raises(OptionError, match="quantization_config"):
        HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint, quantization_config=config)


def test_excluded_modules_are_named_by_strings():
    for named in ("lm_head", [3]):
        config = BitsAndBytesConfig(load_in_8bit=True)
        config.llm_int8_skip_modules = named
        with pytest.raises(OptionError, match=r"llm_int8_skip_modules=.*names of modules"):
            with_exclusions(config)


def test_exclusions_are_added_to_a_copy_of_a_user_s_config():
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["model.layers.0"])
    kept = with_exclusions(config).modules_to_not_convert
    assert kept[0] == "model.layers.0"
    assert len(kept) == 2
    assert config.modules_to_not_convert == ["model.layers.0"]
    assert "llm_int8_skip_modules" in with_exclusions(users_config("nf4").to_dict()).to_dict()
    assert with_exclusions(QuantoConfig(weights="int8")).modules_to_not_convert


def test_the_command_has_all_three_options(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--weights", "int8", "--offload-text", "--codec-device", "cpu"]
    common = ["speak", "Hello.", "--model", str(tiny_checkpoint), "--seed", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as exit:
        main([*common, *small, "-o", "small.wav"])
    assert exit.value.code in (0, None)
    assert (tmp_path / "small.wav").is_file()
    with pytest.raises(SystemExit) as exit:
        main([*common, "--weights", "int3"])
    assert exit.value.code == 2
    assert "allowed: 'int8', 'nf4'" in capsys.readouterr().err
    assert "torchao" in sys.modules
