"""The wheel: installed without a source tree in sight, it trains from any folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_configs_and_the_embedded_model(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "meqsum_lightning/conf/train.yaml",
        "meqsum_lightning/conf/experiment/demo.yaml",
        "meqsum_lightning/assets/tiny_t5/model.safetensors",
        "meqsum_lightning/assets/demo/questions.csv",
    } <= names
    assert not any(name.startswith(("embedded/", "tests/")) for name in names)
    assert wheel.stat().st_size < 12e6


@pytest.mark.slow
def test_an_installed_wheel_trains_from_another_folder(wheel, tmp_path):
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel],
        check=True,
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    # On PYTHONPATH the installed libraries are seen, and the editable install of the tests is not:
    # its .pth file only counts in a site directory.
    variables = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = subprocess.run(
        [python, "-c", "import meqsum_lightning; print(meqsum_lightning.__file__)"],
        cwd=elsewhere, env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(environment)), where.stdout + where.stderr
    done = subprocess.run(
        [environment / "bin" / "meqsum", "train", "experiment=quick", "output_dir=run"],
        cwd=elsewhere, env=variables, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (elsewhere / "run" / "metrics.json").exists()
    assert [path.name for path in elsewhere.iterdir()] == ["run"]
