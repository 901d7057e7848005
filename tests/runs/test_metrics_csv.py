"""The log of metrics: growing columns, and a resume that repeats nothing."""

import csv

from meqsum_lightning.runs.metrics_csv import MetricsCsvLogger


def table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_grow_and_steps_share_a_row(tmp_path):
    logger = MetricsCsvLogger(tmp_path)
    logger.log_metrics({"epoch": 0, "train/loss": 2.5}, step=0)
    logger.log_metrics({"epoch": 0, "train/loss": 1.25}, step=1)
    logger.log_metrics({"epoch": 0, "val/loss": 3.0}, step=1)
    logger.log_metrics({"epoch": 1, "train/loss": 1.0}, step=2)
    assert table(tmp_path) == [
        {"epoch": "0", "step": "0", "train/loss": "2.5", "val/loss": ""},
        {"epoch": "0", "step": "1", "train/loss": "1.25", "val/loss": "3"},
        {"epoch": "1", "step": "2", "train/loss": "1", "val/loss": ""},
    ]


def test_a_damaged_file_is_kept_aside(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\x00binary")
    MetricsCsvLogger(tmp_path, resume_step=3).log_metrics({"a": 1.0}, step=3)
    assert (tmp_path / "metrics-damaged-3.csv").read_bytes() == b"\xff\xfe\x00binary"
    assert table(tmp_path)[0]["a"] == "1"


def test_a_resume_drops_what_will_be_written_again(tmp_path):
    logger = MetricsCsvLogger(tmp_path)
    for step in range(5):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(",5,half a ro")
    MetricsCsvLogger(tmp_path, resume_step=3)
    assert [row["step"] for row in table(tmp_path)] == ["0", "1", "2"]
