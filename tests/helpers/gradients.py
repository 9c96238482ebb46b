"""The gradient of one step of transformers' Trainer, in one process or, as a program, in several:

python -m torch.distributed.run --nproc-per-node=2 gradients.py FOLDER    # reads FOLDER/model
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import torch
from oracle import make_codes
from rows import collate, make_row
from transformers import Trainer, TrainingArguments

from higgs_audio.model.model import HiggsAudioForConditionalGeneration

RATE = 0.1
NUM_ROWS = 8


def make_rows() -> list[Any]:
    """Returns `NUM_ROWS` rows of the same length."""
    return [make_row(4, answer=make_codes(6, seed=seed)) for seed in range(NUM_ROWS)]


def train(
    model: HiggsAudioForConditionalGeneration, rows: list[Any], folder: Path, batch: int, accumulation: int
) -> dict[str, torch.Tensor]:
    """Trains one step of plain gradient descent; returns the change of every weight divided by the rate.

    Args:
        batch: rows of one process in one pass.
        accumulation: passes of a step.
    """
    before = copy.deepcopy(model.state_dict())
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="sgd",
        report_to=[],
        use_cpu=True,
        ddp_backend="gloo" if "RANK" in os.environ else None,
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=lambda rows: collate(*rows, labels=True))
    trainer.train()
    return {name: (value - before[name]) / RATE for name, value in model.state_dict().items()}


if __name__ == "__main__":
    folder, rank, count = Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    model = HiggsAudioForConditionalGeneration.from_pretrained(folder / "model").train()
    torch.save(train(model, make_rows(), folder, NUM_ROWS // count, 1), folder / f"change-{rank}.pt")
