"""What all tests share: no network, own caches, one thread, a tiny backbone and a small file."""

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from meqsum_lightning.config.compose import build_config
from meqsum_lightning.config.schema import TrainConfig

WORDS = [
    "asthma",
    "migraine",
    "eczema",
    "gout",
    "anemia",
    "psoriasis",
    "vertigo",
    "insomnia",
    "hepatitis",
    "lupus",
]
REAL_MEQSUM = (
    Path(__file__).parents[2] / "shared/data/meqsum/MeQSum_ACL2019_BenAbacha_Demner-Fushman.xlsx"
)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is read from or left in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MEQSUM_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run beside each other and beside other work."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local folder with a random T5 v1.1 of two blocks and the embedded tokenizer."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    from meqsum_lightning.models.shapes import embedded_folder

    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty invented questions with summaries."""
    path = tmp_path_factory.mktemp("data") / "questions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "CHQ", "Summary"])
        for number in range(40):
            word, other = WORDS[number % 10], WORDS[(number * 3 + number // 10 + 1) % 10]
            tail = " and nothing helps" * (number % 5)
            text = f"Hello, case {number}: my aunt has {word}, earlier also {other}{tail}."
            writer.writerow([f"q{number}", text, f"What are the treatments for {word} {number}?"])
    return path


@pytest.fixture
def small(tiny_backbone: Path, questions_file: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes configurations of trainings that take a second."""

    def make(*overrides: str) -> TrainConfig:
        return build_config(
            "train", [*small_overrides(tiny_backbone, questions_file, tmp_path / "run"), *overrides]
        )  # type: ignore[return-value]

    return make


def small_overrides(backbone: Path, questions: Path, output: Path) -> list[str]:
    """A training of two epochs of six steps on 24 rows, 8 to validate and 8 to test."""
    return [
        "data=files",
        f"data.path={questions}",
        "data.split=[24,8,8]",
        "data.max_source_length=64",
        "data.max_target_length=24",
        "data.global_batch_size=4",
        "data.micro_batch_size=2",
        f"model.backbone={backbone}",
        "model.dtype=fp32",
        "adapter.r=4",
        "optim.lr=0.01",
        "trainer=cpu",
        "trainer.threads=1",
        "trainer.progress=none",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "checkpoint.every_n_steps=2",
        "generation.max_new_tokens=8",
        "generation.test_num_beams=2",
        "metrics.bootstrap_resamples=100",
        f"output_dir={output}",
    ]


@pytest.fixture(scope="session")
def finished_run(
    tiny_backbone: Path, questions_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A completed run directory; tests copy it before they change it."""
    from meqsum_lightning.engine.train import train

    folder = tmp_path_factory.mktemp("runs") / "finished"
    cfg = build_config("train", small_overrides(tiny_backbone, questions_file, folder))
    return train(cfg).folder  # type: ignore[arg-type]


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a completed run."""
    return Path(shutil.copytree(finished_run, tmp_path / "copied"))


@pytest.fixture(scope="session")
def real_meqsum() -> Path:
    """The official file, where it lies beside the checkout."""
    if not REAL_MEQSUM.is_file():
        pytest.skip("the official MeQSum file is not beside the checkout")
    return REAL_MEQSUM
