"""Tests against transformers' loop: equal draws, and prompts that it does not support.

For intended differences, the tests assert the difference itself, so that a change of transformers is detected.
"""

import pytest
import torch
from oracle import (
    AUDIO_OUT,
    BOS,
    EOS,
    K,
    V,
    collate,
    generate_columns,
    make_codes,
    make_prompt,
)
from torch.overrides import TorchFunctionMode

from higgs_audio.errors import PromptError
from higgs_audio.generation.loop import generate
from higgs_audio.generation.sampling import draw, uniforms

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # warnings of transformers


# Sampling


class trained:
    """A context in which models predict no bos, and eos only in codebook 0, like trained models."""

    def __init__(self, *models):
        self.models = models

    def __enter__(self):
        def exclude_bos_and_eos(module, inputs, output):
            logits = output.unflatten(-1, (K, V + 2)).clone()
            logits[..., BOS] = logits[..., 1:, EOS] = -1e4  # finite: transformers forces the first column with -inf
            return logits.flatten(-2)

        self.hooks = [model.audio_lm_head.register_forward_hook(exclude_bos_and_eos) for model in self.models]

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


OPTIONS = {"temperature": 0.8, "top_k": 12, "top_p": 0.9}
AWARE = {"ras_win_len": 7, "ras_win_max_num_repeat": 1}


def up_to_the_first_end(columns):
    """Returns the columns [n, K] up to the first with an eos; after it the draws may differ, see below."""
    ends = (columns == EOS).any(dim=1).nonzero().flatten().tolist()
    return columns[: ends[0] + 1] if ends else columns


class OurDraws(TorchFunctionMode):
    """A context in which transformers draws with the random numbers of our loop, for one row; nothing else changes.

    In each step it draws a whole column `[K]`, then once more for the cells that a mask selects.

    Args:
        seed: of the row.
    """

    def __init__(self, seed):
        super().__init__()
        self.seed, self.step, self.mask = torch.tensor([seed]), -1, None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__ and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool:
            self.mask = args[1][0]
        if function is torch.multinomial:
            self.step += 1
            return self.draw(args[0], self.noise()[:K])
        if function is torch.Tensor.multinomial:
            return self.draw(args[0], self.noise()[K:][self.mask])
        return function(*args, **(kwargs or {}))

    def noise(self):
        return uniforms(self.seed, torch.tensor([self.step]), 2 * K)[0]

    def draw(self, probabilities, noise):
        return draw(probabilities.log(), noise)[:, None]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_streams_agree_with_transformers_once_a_reference_and_the_bos_column_are_in_the_prompt(
    model, oracle_model, seed
):
    """Columns are equal where both start at the first sampled column with the same random numbers."""
    ids, columns = make_prompt(range(20, 32), [make_codes(6, 1)])
    batch = collate([([*ids, AUDIO_OUT], torch.cat([columns, torch.full((1, K), BOS)]))])
    with trained(model, oracle_model):
        ours = generate(model, **batch, max_new_tokens=40, seed=seed, ras_win_len=None, **OPTIONS)[1][0].T[1:]
        with OurDraws(seed):
            theirs = generate_columns(oracle_model, batch, 40, do_sample=True, **OPTIONS)[0]
    assert len(ours) > K
    assert torch.equal(ours, theirs[: len(ours)])
    assert (theirs[len(ours) :] == EOS).all()


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_streams_with_repetition_awareness_agree_with_transformers_up_to_the_first_end(model, oracle_model, seed):
    """Both windows contain the same codes: the last code of a reference is K + 1 columns before the first of a
    codebook, outside a window of 7, and bos and eos do not count. While a segment closes after an eos, ours and the
    original draw for cells that become eos, and transformers does not."""
    ids, columns = make_prompt(range(20, 32), [make_codes(1, 4).expand(K, 6)])  # one code again and again
    batch = collate([([*ids, AUDIO_OUT], torch.cat([columns, torch.full((1, K), BOS)]))])
    with trained(model, oracle_model):
        ours = generate(model, **batch, max_new_tokens=40, seed=seed, **OPTIONS, **AWARE)[1][0].T[1:]
        plain = generate(model, **batch, max_new_tokens=40, seed=seed, **OPTIONS, ras_win_len=None)[1][0].T[1:]
        with OurDraws(seed):
            theirs = generate_columns(oracle_model, batch, 40, do_sample=True, **OPTIONS, **AWARE)[0]
    ours = up_to_the_first_end(ours)
    assert torch.equal(ours, theirs[: len(ours)])
    assert not torch.equal(ours, plain[: len(ours)]), "nothing was redrawn"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_a_reference_transformers_spends_one_draw_on_the_column_that_it_forces(model, oracle_model, seed):
    """Its draws use the random numbers of our steps; our first step draws nothing."""
    batch = collate([make_prompt(range(20, 32))])
    with trained(model, oracle_model):
        ours = generate(model, **batch, max_new_tokens=40, seed=seed, **OPTIONS, ras_win_len=None)[1][0].T
        with OurDraws(seed) as draws:
            theirs = generate_columns(oracle_model, batch, 40, do_sample=True, **OPTIONS)[0]
    assert draws.step + 1 == len(theirs)
    assert len(ours) > K
    assert torch.equal(ours, theirs[: len(ours)])


def test_in_a_batch_transformers_draws_all_rows_from_one_generator_and_ours_each_by_its_own_seed(model, oracle_model):
    """In ours, a row of a batch equals the row alone; in transformers it depends on the other rows."""
    prompts = [make_prompt(range(20, 32)), make_prompt(range(40, 55))]
    torch.manual_seed(0)
    together = generate_columns(oracle_model, collate(prompts), 20, do_sample=True)
    torch.manual_seed(0)
    alone = generate_columns(oracle_model, collate(prompts[1:]), 20, do_sample=True)
    assert not torch.equal(together[1, : alone.shape[1]], alone[0])
    ours = generate(model, **collate(prompts), max_new_tokens=20, seed=[5, 0]).audio_sequences[1][0]
    assert torch.equal(ours, generate(model, **collate(prompts[1:]), max_new_tokens=20, seed=0)[1][0])


# Prompts that transformers' loop does not support


def test_a_short_prompt_starts_with_ids_other_than_bos_in_transformers(model, oracle_model):
    batch = collate([make_prompt([20, 21, 22])])
    assert (generate(model, **batch, max_new_tokens=2, do_sample=False)[1][0][:, 0] == BOS).all()
    assert (generate_columns(oracle_model, batch, 2)[0, 0] != BOS).any()


def test_a_prompt_that_ends_soon_after_a_reference_fails_in_transformers(model, oracle_model):
    batch = collate([make_prompt((), [make_codes(6, 0)])])
    with pytest.raises(RuntimeError, match="probability tensor"):
        generate_columns(oracle_model, batch, 3, do_sample=True)
    segment = generate(model, **batch, max_new_tokens=12, min_frames=9, seed=0)[1][0]
    assert [(row == BOS).sum().item() for row in segment] == list(range(1, K + 1))


def test_a_prompt_with_one_column_is_continued_by_ours_and_fails_in_transformers(model, oracle_model):
    ids, _ = make_prompt(range(20, 32))
    batch = collate([([*ids, AUDIO_OUT], torch.full((1, K), BOS))])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        generate_columns(oracle_model, batch, 3)
    whole = generate(model, **collate([make_prompt(range(20, 32))]), max_new_tokens=9, do_sample=False)
    assert torch.equal(generate(model, **batch, max_new_tokens=8, do_sample=False)[1][0], whole[1][0])


def test_a_truncated_segment_restarts_in_transformers_once_its_bos_is_8_tokens_back(model, oracle_model):
    ids, _ = make_prompt(range(20, 32))
    options = {"do_sample": False, "min_frames": 30}
    whole = generate(model, **collate([make_prompt(range(20, 32))]), max_new_tokens=30, **options)[1][0]
    batch = collate([([*ids, *[AUDIO_OUT] * 12], whole[:, :12].T)])
    assert (generate_columns(oracle_model, batch, 1)[0, 0] == BOS).all()
    assert torch.equal(generate(model, **batch, max_new_tokens=18, **options)[1][0], whole)


def test_repetition_awareness_is_an_option_of_the_call_in_ours_and_of_the_config_in_transformers(model, oracle_model):
    batch = collate([make_prompt(range(20, 32))])
    with pytest.raises(ValueError, match="ras_win_len"):
        oracle_model.generate(**batch, ras_win_len=7, max_new_tokens=2)
    assert generate(model, **batch, ras_win_len=7, max_new_tokens=2, seed=0).finish_reasons == ["length"]


def test_the_result_of_transformers_contains_the_prompts_columns_and_ours_only_new_ones(model, oracle_model):
    ids, columns = make_prompt(range(20, 32), [make_codes(6, 1)])
    batch = collate([(ids, columns)])
    theirs = oracle_model.generate(**batch, max_new_tokens=5, do_sample=False)
    ours = generate(model, **batch, max_new_tokens=5, do_sample=False)
    assert theirs.shape == (1, len(columns) + 5, K)
    assert ours[1][0].shape == (K, 5)
    assert ours[0].shape == (1, len(ids) + 5)


def test_a_column_of_one_row_fills_the_placeholder_of_another_in_transformers_and_is_rejected_by_ours(
    model, oracle_model
):
    batch = collate([make_prompt(range(20, 32), [make_codes(6, 1)]), make_prompt(range(20, 25), [make_codes(3, 1)])])
    batch["audio_input_ids_mask"][0, -1], batch["audio_input_ids_mask"][1, 12] = False, True
    with torch.no_grad():
        assert bool(oracle_model(**batch).logits.isfinite().all())
    with pytest.raises(PromptError, match="they must be equal"):
        model(**batch)
