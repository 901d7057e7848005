import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from meqsum_lightning.models.losses import row_losses, token_loss


@pytest.fixture
def batch():
    torch.manual_seed(0)
    labels = torch.tensor([[5, 3, 1, -100], [2, 1, -100, -100], [-100, -100, -100, -100]])
    return torch.randn(3, 4, 11, requires_grad=True), labels


def tiny(family):
    torch.manual_seed(0)
    if family == "t5":
        config = T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        return T5ForConditionalGeneration(config).eval()
    config = BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_equals_transformers_loss(family):
    model = tiny(family)
    labels = torch.tensor([[5, 9, 7, 1], [8, 1, -100, -100]])
    output = model(input_ids=torch.randint(3, 40, (2, 6)), labels=labels)
    total, count = token_loss(output.logits, labels)
    assert count.item() == 6
    torch.testing.assert_close(total / count, output.loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_torch_and_its_own_rows(batch, smoothing):
    logits, labels = batch
    total, count = token_loss(logits, labels, smoothing)
    expected = F.cross_entropy(
        logits.view(-1, 11), labels.view(-1), reduction="sum", label_smoothing=smoothing
    )
    torch.testing.assert_close(total, expected)
    sums, counts = row_losses(logits, labels, smoothing)
    assert counts.tolist() == [3, 2, 0]
    assert sums[2] == 0.0
    torch.testing.assert_close(sums.sum(), total)
    assert counts.sum() == count
    gradients = torch.autograd.grad(sums.sum(), logits)[0], torch.autograd.grad(total, logits)[0]
    torch.testing.assert_close(*gradients)


def test_smoothing_formula(batch):
    logits, labels = batch
    logs, real = logits.log_softmax(-1), labels != -100
    picked = logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = -(0.9 * picked + 0.1 * logs.mean(-1))[real].sum()
    torch.testing.assert_close(token_loss(logits, labels, 0.1)[0], expected)


def test_a_split_batch_gives_the_same_gradient(batch):
    logits, labels = batch
    total, count = token_loss(logits, labels)
    whole = torch.autograd.grad(total / count, logits)[0]
    # Halves with 3 and 2 tokens: averaging two means would weight them alike.
    parts = [token_loss(logits[rows], labels[rows]) for rows in (slice(0, 1), slice(1, 3))]
    joined = sum(part[0] for part in parts) / sum(part[1] for part in parts)
    torch.testing.assert_close(torch.autograd.grad(joined, logits)[0], whole)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (0, 3)])
def test_no_target_token_is_zero_not_nan(shape, smoothing):
    logits = torch.randn(*shape, 7, requires_grad=True)
    labels = torch.full(shape, -100)
    for total, count in (token_loss(logits, labels, smoothing), row_losses(logits, labels)):
        assert total.sum().item() == 0.0
        assert count.sum().item() == 0
        gradient = torch.autograd.grad(total.sum(), logits)[0]
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_is_computed_in_fp32():
    torch.manual_seed(0)
    logits, labels = torch.randn(64, 8, 500).bfloat16() * 5, torch.randint(0, 500, (64, 8))
    total, _ = token_loss(logits, labels)
    exact = F.cross_entropy(logits.double().view(-1, 500), labels.view(-1), reduction="sum")
    assert total.dtype == torch.float32
    assert row_losses(logits, labels)[0].dtype == torch.float32
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert token_loss(logits, labels)[0].dtype == torch.float32
