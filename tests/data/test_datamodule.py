"""Batches as tensors: padding, labels, the loader that starts at the cursor."""

import pytest
import torch

from meqsum_lightning.data.batching import IGNORED_LABEL
from meqsum_lightning.engine.parts import load_data


@pytest.fixture
def data(small):
    return load_data(small())


def test_a_training_item_is_one_optimizer_step(data):
    steps = list(data.module.train_dataloader())
    assert len(steps) == data.module.steps_per_epoch == 6
    for step in steps:
        assert [len(micro["row_indices"]) for micro in step["micro_batches"]] == [2, 2]
        tokens = sum(int((m["labels"] != IGNORED_LABEL).sum()) for m in step["micro_batches"])
        assert step["target_tokens"] == tokens > 0


def test_padding_is_masked_and_labels_are_ignored(data):
    part = data.module.part("train")
    for step in data.module.train_dataloader():
        for micro in step["micro_batches"]:
            assert micro["input_ids"].shape[1] % 8 == 0
            for at, row in enumerate(micro["row_indices"].tolist()):
                length = len(part.tokens.source[row])
                assert micro["attention_mask"][at].tolist()[:length] == [1] * length
                assert micro["attention_mask"][at, length:].sum() == 0
                assert micro["input_ids"][at, :length].tolist() == part.tokens.source[row]
                target = micro["labels"][at]
                assert target[target != IGNORED_LABEL].tolist() == part.tokens.target[row]


def test_the_end_token_survives_truncation(small):
    module = load_data(small("data.max_source_length=12", "data.max_target_length=4")).module
    part = module.part("train")
    end = module.tokenizer.eos_token_id
    assert part.tokens.truncated_sources == len(part.rows)
    assert all(ids[-1] == end and len(ids) <= 12 for ids in part.tokens.source)
    assert all(ids[-1] == end and len(ids) <= 4 for ids in part.tokens.target)


def test_the_loader_starts_at_the_cursor(data):
    whole = [
        step["micro_batches"][0]["row_indices"].tolist() for step in data.module.train_dataloader()
    ]
    data.module.cursor.step = 4
    rest = [
        step["micro_batches"][0]["row_indices"].tolist() for step in data.module.train_dataloader()
    ]
    assert rest == whole[4:]


def test_workers_give_the_same_batches(small):
    alone = list(load_data(small()).module.train_dataloader())
    helped = list(load_data(small("data.workers=2")).module.train_dataloader())
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(
            one["micro_batches"][1]["input_ids"], other["micro_batches"][1]["input_ids"]
        )


def test_max_steps_cuts_the_last_epoch_short(small):
    module = load_data(small("trainer.max_steps=8")).module
    assert module.total_steps == 8
    module.cursor.epoch = 1
    assert len(list(module.train_dataloader())) == 2


def test_limits_and_overfitting(small):
    module = load_data(small("trainer.limit_train_batches=2", "trainer.limit_val_batches=1")).module
    assert len(list(module.train_dataloader())) == 2
    assert len(list(module.val_dataloader())) == 1
    module = load_data(small("trainer.overfit_rows=5")).module
    assert [row.id for row in module.part("val").rows] == [
        row.id for row in module.part("train").rows
    ]
    assert len(module.part("train").rows) == 5


def test_evaluation_batches_carry_references(data):
    part = data.module.part("test")
    seen = {}
    for batch in data.module.test_dataloader():
        seen |= dict(zip(batch["row_indices"].tolist(), batch["references"], strict=True))
    assert seen == {at: row.summary for at, row in enumerate(part.rows)}
