"""Tests of run folders, and of the optimizer step that all training loops share."""

import dataclasses
import itertools
import json

import pytest
import torch
from corpus import TEXT
from full_disk import file_size_limit
from killing import KilledError, hidden_names, run_until_rename
from runs import contents, read_metrics, teacher_recipe, tiny_model, write_timed_corpus

from higgs_audio.errors import CheckpointError, NumericsError, RecipeError
from higgs_audio.prompt.processor import HiggsAudioProcessor
from higgs_audio.train_codec.teacher import train_teacher
from higgs_audio.training.run import Run, apply_gradients, decay_groups, learning_rate, seed_step


def test_the_learning_rate_has_a_linear_warmup_and_a_cosine_decay():
    rates = [learning_rate(step, 100, 1.0, 10, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert all(after < before for before, after in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error_and_changes_no_parameter(poison):
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.5)
    with pytest.raises(NumericsError, match="lower the learning rate"):
        apply_gradients((layer(torch.ones(2)) * poison).sum(), layer, optimizer, 0.1, 1.0)
    assert torch.equal(layer.weight, before)


def test_norms_biases_and_embeddings_have_no_weight_decay(tiny_checkpoint):
    model = tiny_model(HiggsAudioProcessor.from_pretrained(tiny_checkpoint), TEXT)
    decayed, rest = (group["params"] for group in decay_groups(model, 0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in rest} == {
        *("embed_tokens", "embed_audio_tokens", "norm"),
        *("input_layernorm", "post_attention_layernorm", "audio_input_layernorm", "audio_post_attention_layernorm"),
    }
    assert len(decayed) + len(rest) == len(names)


def test_the_randomness_of_a_step_depends_on_seed_and_step_only():
    def draw(seed, step):
        generator = seed_step(seed, step)
        return torch.rand(3).tolist() + torch.rand(3, generator=generator).tolist()

    first = draw(0, 5)
    torch.rand(7)
    assert draw(0, 5) == first
    assert draw(0, 6) != first
    assert draw(1, 5) != first


def tiny_run(folder, parts):
    """Creates a folder with the state of step 3 and a recipe."""
    Run(folder).save(3, parts)
    (folder / "recipe.yaml").write_text("seed: 7\n")
    return contents(folder)


def layer_and_optimizer(*sizes):
    layer = torch.nn.Linear(*sizes)
    return {"model": layer, "optimizer": torch.optim.AdamW(decay_groups(layer, 0.1))}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda parts: {**parts, "model": torch.nn.Linear(3, 2)}, r"model weight is \[3, 3\] there and \[2, 3\] here"),
        (lambda parts: {**parts, "model": torch.nn.Linear(3, 3, bias=False)}, "model bias is only there"),
        (lambda parts: {**parts, "judges": torch.nn.Linear(1, 1)}, "judges is only here"),
        (lambda parts: {"model": parts["model"]}, "optimizer is only there"),
        (
            lambda parts: {**parts, "optimizer": torch.optim.AdamW(parts["model"].parameters())},
            "optimizer group 1 is only there",
        ),
    ],
    ids=["other size", "other layer", "extra part", "missing part", "other groups"],
)
def test_the_state_of_another_recipe_is_not_resumed(tmp_path, change, difference):
    """Earlier, torch raised an error, and the recipe in the folder was already overwritten."""
    tiny_run(tmp_path, layer_and_optimizer(3, 3))
    parts = change(layer_and_optimizer(3, 3))
    before = {name: value.clone() for name, value in parts["model"].state_dict().items()}
    with pytest.raises(RecipeError, match=f"a run of another recipe: {difference}"):
        Run(tmp_path).resume(parts)
    assert all(torch.equal(value, before[name]) for name, value in parts["model"].state_dict().items())


def test_the_error_of_a_damaged_state_names_the_file(tmp_path):
    parts = layer_and_optimizer(3, 3)
    tiny_run(tmp_path, parts)
    whole = (tmp_path / "state.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"nothing of the kind"):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.pt' cannot be read"):
            Run(tmp_path).resume(parts)
    torch.save([1], tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="not the state of a run"):
        Run(tmp_path).resume(parts)


@pytest.mark.parametrize("num_bytes", [100, 1500])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, num_bytes):
    parts = layer_and_optimizer(3, 3)
    before = tiny_run(tmp_path, parts)
    assert len(before["state.pt"]) > 1500
    with file_size_limit(num_bytes), pytest.raises(CheckpointError, match=r"step 4 cannot be saved .* File too large"):
        Run(tmp_path).save(4, parts)
    assert contents(tmp_path) == before


def test_a_run_does_not_change_the_folder_of_another_recipe(tmp_path, tmp_path_factory):
    corpus = write_timed_corpus(tmp_path_factory.mktemp("corpus"))
    before = tiny_run(tmp_path, layer_and_optimizer(3, 3))
    with pytest.raises(RecipeError, match="a run of another recipe"):
        train_teacher(dataclasses.replace(teacher_recipe(corpus), output=str(tmp_path)))
    assert contents(tmp_path) == before


class Dying:
    """A part of a run that kills the process while it is written."""

    def state_dict(self):
        return {"weight": torch.zeros(3), "rest": self}

    def __reduce__(self):
        raise KilledError


def test_a_run_killed_while_it_saves_keeps_the_last_checkpoint(tmp_path):
    layer = torch.nn.Linear(3, 3)
    first = layer.weight.detach().clone()
    run = Run(tmp_path)
    run.save(1, {"model": layer})
    torch.nn.init.zeros_(layer.weight)
    with pytest.raises(KilledError):
        run.save(2, {"model": layer, "optimizer": Dying()})
    assert Run(tmp_path).resume({"model": layer}) == 1
    assert torch.equal(layer.weight, first)


SAVE = """
import torch
from higgs_audio.training.run import Run
Run(sys.argv[1]).save(4, {"model": torch.nn.Linear(3, 3)})
"""


def test_a_killed_save_leaves_one_temporary_file_and_the_next_run_removes_it(tmp_path):
    layer = torch.nn.Linear(3, 3)
    before = tiny_run(tmp_path, {"model": layer})
    run_until_rename(SAVE, tmp_path)
    (leftover,) = hidden_names(tmp_path)
    assert leftover.startswith(".state.pt.")
    assert contents(tmp_path).items() >= before.items()
    run = Run(tmp_path)
    assert run.resume({"model": layer}) == 3
    assert contents(tmp_path) == before
    run.save(4, {"model": layer})
    assert sorted(contents(tmp_path)) == ["recipe.yaml", "state.pt"]


CONTINUE = """
from higgs_audio.training.run import Run
Run(sys.argv[1]).continue_from(1)
"""


def test_a_run_killed_while_it_removes_metrics_keeps_them_and_the_next_run_removes_its_temporary_file(tmp_path):
    run = Run(tmp_path, log_every=1)
    for step in (1, 2):
        run.log(step, {"loss": step})
    run_until_rename(CONTINUE, tmp_path)
    (leftover,) = hidden_names(tmp_path)
    assert leftover.startswith(".metrics.jsonl.")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    Run(tmp_path).continue_from(1)
    assert hidden_names(tmp_path) == []
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_a_resumed_run_removes_the_metrics_of_later_steps(tmp_path):
    run = Run(tmp_path, log_every=1)
    layer = torch.nn.Linear(1, 1)
    for step in (1, 2, 3):
        run.log(step, {"loss": step})
        if step == 2:
            run.save(step, {"model": layer})
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 4, "lo')  # the run was killed while it wrote a line
    assert Run(tmp_path).resume({"model": layer}) == 2
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_run_has_plateaued_after_patience_checks_without_an_improvement(tmp_path):
    run = Run(tmp_path)
    seen = []
    for step, value in enumerate([3.0, 2.0, 2.5, 2.0, 1.5, 1.6, 1.7], start=1):
        run.record(step, {"heldout": value})
        seen.append((run.is_best("heldout"), run.has_plateaued("heldout", 2), run.has_plateaued("heldout", 0)))
    assert [best for best, *_ in seen] == [True, True, False, False, True, False, False]
    assert [stale for _, stale, _ in seen] == [False, False, False, True, False, False, True]
    assert not any(without_patience for *_, without_patience in seen)
    again = Run(tmp_path)
    again.continue_from(5)
    assert again.is_best("heldout")
    assert not again.has_plateaued("heldout", 2)


def test_resuming_removes_partial_files_and_loads_states_of_earlier_versions(tmp_path):
    """Earlier versions wrote `state.pt` under its final name with `torch.save`; a kill could leave a partial file."""
    parts = layer_and_optimizer(3, 3)
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": 5}, tmp_path / "state.pt")
    (tmp_path / ".state.pt.0a1b2c3d.part").write_bytes(b"half")
    (tmp_path / "state.pt.part").write_bytes(b"half")
    other = layer_and_optimizer(3, 3)
    assert Run(tmp_path).resume(other) == 5
    assert torch.equal(other["model"].weight, parts["model"].weight)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_metrics_of_an_attempt_that_was_lost_before_its_first_checkpoint_are_not_doubled(tmp_path):
    layer = torch.nn.Linear(3, 3)
    for _ in range(2):
        run = Run(tmp_path, log_every=1)
        assert run.resume({"model": layer}) == 0
        for step in (1, 2):
            run.log(step, {"loss": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
