"""One line per mistake, all at once, with what would be right."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meqsum_lightning.config import components
from meqsum_lightning.config.compose import build_config
from meqsum_lightning.config.groups import conf_dir
from meqsum_lightning.config.schema import SCHEMAS
from meqsum_lightning.config.validate import key_paths, suggest
from meqsum_lightning.errors import UserError


def mistakes(*overrides: str, command: str = "train") -> list[str]:
    with pytest.raises(UserError) as caught:
        build_config(command, overrides)
    return caught.value.lines


def test_defaults_of_every_command_are_valid():
    for command in SCHEMAS:
        build_config(command)


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_unknown_keys_are_refused_with_a_suggestion(sign):
    assert mistakes(f"{sign}adapter.rnak=4") == [
        "adapter.rnak=4: no such key; did you mean adapter.r?"
    ]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("adapter.rank", "adapter.r"),
        ("lora_alpha", "adapter.alpha"),
        ("learning_rate", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("trainer.epochs", "trainer.max_epochs"),
        ("data.batch_size", "data.global_batch_size"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("adapter.target_module", "adapter.target_modules"),
        ("generation.max_length", "generation.max_new_tokens"),
        ("sed", "seed"),
    ],
)
def test_other_names_of_a_key_are_understood(key, meant):
    assert suggest(key, "train") == meant


def test_a_word_that_means_nothing_gets_no_suggestion():
    assert suggest("xyzzy", "train") is None


@pytest.mark.parametrize("value", ["true", "4.0", "'4'", "four", "0", "-1", "[4]", "1e3", "nan"])
def test_what_is_no_rank(value):
    (line,) = mistakes(f"adapter.r={value}")
    assert line.startswith("adapter.r=") and "expected an integer >= 1" in line


@pytest.mark.parametrize("value", ["0", "-0.1", "inf", "nan", "fast", "true"])
def test_what_is_no_learning_rate(value):
    (line,) = mistakes(f"optim.lr={value}")
    assert line.startswith("optim.lr=") and "expected a number > 0" in line


def test_all_mistakes_come_together():
    lines = mistakes(
        "data=meqsm",
        "adapter.rnak=4",
        "adapter.dropout=2",
        "optim.lr=-1",
        "adapter.scope=cross",
        "adapter.target_modules=ffn",
        "trainer.precision=16-mixed",
    )
    assert len(lines) == 6
    for part in (
        "data=meqsm",
        "rnak",
        "adapter.dropout=2",
        "optim.lr=-1",
        "scope=cross",
        "bf16-mixed",
    ):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["adapter=full", "adapter.r=4"], "adapter.r=4: adapter=full has no such setting"),
        (["adapter=none", "adapter.alpha=4"], "adapter.alpha=4: adapter=none has no such setting"),
        (["adapter.r=null"], "adapter.r=null: adapter=lora needs it"),
        (["adapter.target_modules=[]"], "adapter.target_modules=[]: empty"),
        (["adapter.target_modules=qvx"], "no such preset; expected qv, qkv, attention, ffn, all"),
        (["adapter.layers=[]"], "selects nothing"),
        (["data.split=folds", "data.fold=5"], "expected 0 to 4"),
        (["data.fold=1"], "has no folds; expected data.split=folds"),
        (["trainer.devices=2"], "several devices are not supported yet"),
        (["logger=null"], "logger=null: no such choice"),
        (["callbacks=null"], "to have none: none"),
        (["=4"], "not an override"),
        (["data.split=[0.5,0.5,0.5]"], "sum to 1.5; expected 1"),
        (["data.split=[800,100]"], "not three positive parts"),
        (["data.split=[0.5,100,100]"], "neither fractions nor counts"),
        (["data.split=random"], "no such scheme"),
        (["data=demo", "data.path=a.csv"], "data=demo has its own rows"),
        (["data=files", "data.path=a.csv", "data.val_path=b.csv"], "cannot be joined"),
        (["data=files", "data.train_path=a.csv"], "expected all three files"),
        (
            [
                "data=files",
                "data.train_path=a",
                "data.val_path=b",
                "data.test_path=c",
                "data.split=folds",
            ],
            "are a split already",
        ),
        (["model.weights=random", "model.shape=null"], "needs one"),
        (["checkpoint.monitor=test/rouge1"], "did you mean val/rouge1?"),
        (["adapter.r=4,8"], "expected one, or -m for a sweep"),
        (["--adapter.r=4"], "without dashes"),
        (["adapter.r"], "expected key=value"),
        (["~adapter.r"], "keys cannot be removed"),
        (["optim.lr=1e-3)"], "optim.lr=1e-3): should be a valid number"),
        (["model=flan_t5_larg"], "did you mean flan_t5_large?"),
        (["trainer.accelerator=gp"], "did you mean gpu?"),
    ],
)
def test_combinations_and_forms(overrides, part):
    lines = mistakes(*overrides)
    assert len(lines) == 1 and part in lines[0]


def test_a_value_in_a_file_is_held_to_the_same_rules(tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "mine.yaml").write_text("defaults: [lora]\nrnak: 4\nr: '8'\n")
    with pytest.raises(UserError) as caught:
        build_config("train", ["adapter=mine"], [str(tmp_path)])
    assert len(caught.value.lines) == 2


def test_a_users_folder_adds_choices(tmp_path: Path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "fast.yaml").write_text("defaults: [adamw, _self_]\nlr: 0.5\n")
    assert build_config("train", ["optim=fast"], [str(tmp_path)]).optim.lr == 0.5  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no such folder"):
        build_config("train", [], [str(tmp_path / "none")])


def test_alpha_follows_the_rank():
    assert build_config("train", ["adapter.r=12"]).adapter.alpha == 24.0  # type: ignore[attr-defined]
    assert build_config("train", ["adapter.alpha=5"]).adapter.alpha == 5.0  # type: ignore[attr-defined]


def test_an_experiments_rank_gives_way_to_full_fine_tuning():
    assert build_config("train", ["experiment=demo", "adapter=full"]).adapter.r is None  # type: ignore[attr-defined]
    assert len(mistakes("experiment=demo", "adapter=full", "adapter.r=4")) == 1


@pytest.mark.parametrize("name", ["800_100_100", "400_100_500"])
def test_names_of_splits_are_names_not_numbers(name):
    assert build_config("train", [f"data.split={name}"]).data.split == name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "path", ["a b (1).csv", "~/x.csv", "ü😀.csv", "a=b,c.csv", 'say "so".csv', "back\\slash"]
)
def test_odd_paths_are_texts(path):
    cfg = build_config("predict", [f"input={path}"] if "," not in path else [f'input="{path}"'])
    assert cfg.input == path  # type: ignore[attr-defined]


def test_paths_mean_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backbone").mkdir()
    cfg = build_config(
        "train", ["data=files", "data.path=a.csv", "model.backbone=backbone", "data.split=s.json"]
    )
    assert cfg.data.path == str(tmp_path / "a.csv")  # type: ignore[attr-defined]
    assert cfg.data.split == str(tmp_path / "s.json")  # type: ignore[attr-defined]
    assert cfg.model.backbone == str(tmp_path / "backbone")  # type: ignore[attr-defined]
    assert build_config("train").model.backbone == "embedded"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "override",
    [
        "optim.optimizer._target_=torch.optim.SGD",
        "optim.optimizer={_target_: torch.optim.SGD, momentum: 0.9}",
    ],
)
def test_another_optimizer_brings_its_own_arguments(override):
    optimizer = build_config("train", [override]).optim.optimizer  # type: ignore[attr-defined]
    assert optimizer.target == "torch.optim.SGD"
    assert optimizer.arguments in ({}, {"momentum": 0.9})


def test_no_loggers_at_all():
    assert build_config("train", ["logger=[]"]).logger == {}  # type: ignore[attr-defined]


def test_a_broken_file_is_one_line(tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError) as caught:
        build_config("train", ["adapter=bad"], [str(tmp_path)])
    assert len(caught.value.lines) == 1


def test_three_files_are_a_split():
    paths = ["data=files", "data.train_path=a", "data.val_path=b", "data.test_path=c"]
    assert build_config("train", paths).data.split == "given"  # type: ignore[attr-defined]


@pytest.mark.parametrize("group", ["experiment", "debug"])
def test_every_ready_made_config_composes(group):
    names = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    assert len(names) >= 4
    for name in names:
        build_config("train", [f"{group}={name}"])


def test_every_choice_of_every_group_composes():
    for group in ("data", "model", "adapter", "optim", "trainer", "logger", "callbacks"):
        for path in (conf_dir() / group).glob("*.yaml"):
            if path.stem != "base":
                build_config("train", [f"{group}={path.stem}"])
    cfg = build_config("train", ["logger=[csv,tensorboard]"])
    assert set(cfg.logger) == {"csv", "tensorboard"}  # type: ignore[attr-defined]


def test_every_key_has_a_comment():
    for path in conf_dir().rglob("*.yaml"):
        assert path.read_text(encoding="utf-8").startswith("#"), path
    documented = "\n".join(path.read_text(encoding="utf-8") for path in conf_dir().rglob("*.yaml"))
    for key in key_paths(SCHEMAS["train"]):
        assert f"{key.rpartition('.')[2]}:" in documented, key


@pytest.mark.parametrize(
    "override",
    [
        "callbacks.x._target_=os.system",
        "logger.x._target_=subprocess.Popen",
        "optim.optimizer._target_=builtins.eval",
        "+callbacks.x={_target_: shutil.rmtree, path: /}",
    ],
)
def test_a_config_is_no_way_to_run_a_program(override):
    lines = mistakes(override)
    assert "not in an allowed package" in lines[0] and "--allow-target" in lines[0]


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.adamw.torch.os.system",
        "lightning.pytorch.callbacks.callback.Any",
        "meqsum_lightning.cli.main",
        "torch.optim.AdamW",
        "lightning.pytorch.callbacks.Nope",
    ],
)
def test_only_classes_of_the_expected_kind_are_loaded(target):
    from lightning.pytorch import Callback

    with pytest.raises(UserError):
        components.load_class(target, Callback)


def test_targets_inside_arguments_are_refused():
    lines = mistakes(
        "callbacks.x={_target_: lightning.pytorch.callbacks.Timer, a: {_target_: os.system}}"
    )
    assert any("nested _target_" in line for line in lines)


def test_a_flag_widens_the_list(monkeypatch):
    monkeypatch.setattr(components, "_widened", [])
    assert not components.is_allowed("my_package.MyCallback")
    components.allow_packages(["my_package"])
    assert components.is_allowed("my_package.MyCallback")
    assert not components.is_allowed("my_package_evil.MyCallback")


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1, max_size=30))
def test_any_text_is_a_config_or_a_user_error(text):
    try:
        build_config("train", [text])
    except UserError as error:
        assert all("\n" not in line for line in error.lines)
