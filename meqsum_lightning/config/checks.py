"""Checks that join several keys. Each runs only when the keys that it reads are valid themselves,
so that all mistakes of a configuration can be told together.
"""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from meqsum_lightning.config.adapter import PRESETS, is_layer_name
from meqsum_lightning.config.components import check_target

Get = Callable[[str], Any]

LOW_RANK = ("lora", "dora", "rslora", "pissa")
ADAPTER_KEYS = ("r", "budget", "alpha", "dropout", "target_modules", "scope", "layers")
SPLIT_SCHEMES = ("given", "800_100_100", "400_100_500", "folds")


def adapter_keys_fit_method(get: Get) -> Iterator[str]:
    """`full` and `none` have no rank; every low-rank method has one, or a budget, and modules."""
    method = get("adapter.method")
    r, budget = get("adapter.r"), get("adapter.budget")
    if method in LOW_RANK and r is not None and budget is not None:
        yield (
            f"adapter.r={r}: cannot be joined with adapter.budget={budget}, from which the rank "
            "follows; expected one of them, the other null"
        )
    needed = ("r", "dropout", "target_modules", "scope")
    for key in ADAPTER_KEYS:
        value = get(f"adapter.{key}")
        if method not in LOW_RANK and value is not None:
            yield (
                f"adapter.{key}={_show(value)}: adapter={method} has no such setting; "
                f"expected adapter={'|'.join(LOW_RANK)}, or no adapter.{key}"
            )
        if key == "r" and budget is not None:
            continue
        if method in LOW_RANK and value is None and key in needed:
            yield f"adapter.{key}=null: adapter={method} needs it; expected a value"


def target_modules_are_named(get: Get) -> Iterator[str]:
    """A preset is known; a list is not empty; `cross` has no feed-forward."""
    modules, scope = get("adapter.target_modules"), get("adapter.scope")
    if isinstance(modules, str):
        if modules not in PRESETS and not is_layer_name(modules):
            close = difflib.get_close_matches(modules, PRESETS, n=1)
            yield (
                f"adapter.target_modules={modules}: no such preset; expected "
                f"{', '.join(PRESETS)}, or a list of module names such as [q,v]"
                + (f"; did you mean {close[0]}?" if close else "")
            )
        if modules == "ffn" and scope == "cross":
            yield (
                "adapter.scope=cross: selects nothing with adapter.target_modules=ffn; "
                "cross-attention has no feed-forward; expected qv, qkv, attention or another scope"
            )
    elif modules is not None and not modules:
        yield "adapter.target_modules=[]: empty; expected a preset or module names"
    if get("adapter.layers") == []:
        yield "adapter.layers=[]: selects nothing; expected block numbers such as [0,1], or null"


def data_paths_fit(get: Get) -> Iterator[str]:
    """One way to name the rows: a path, three files, or the source's own."""
    source, path = get("data.source"), get("data.path")
    trio = {key: get(f"data.{key}") for key in ("train_path", "val_path", "test_path")}
    named = [key for key, value in trio.items() if value is not None]
    if path is not None and named:
        yield (
            f"data.path={path}: cannot be joined with data.{named[0]}={trio[named[0]]}; "
            "expected one file to be split, or three files"
        )
    elif named and len(named) < 3:
        missing = ", ".join(f"data.{key}" for key in trio if key not in named)
        yield f"data.{named[0]}={trio[named[0]]}: {missing} missing; expected all three files"
    if source == "demo" and (path is not None or named):
        key = "path" if path is not None else named[0]
        yield (
            f"data.{key}={get(f'data.{key}')}: data=demo has its own rows; "
            "expected data=files or data=meqsum"
        )


def split_is_known(get: Get) -> Iterator[str]:
    """Schemes by name, three fractions that sum to 1, three counts, or a file of ids."""
    split = get("data.split")
    if split is None:
        return
    if get("data.train_path") is not None and split != "given":
        yield (
            f"data.split={_show(split)}: the three files are a split already; "
            "expected data.split=given"
        )
        return
    if isinstance(split, str):
        if split not in SPLIT_SCHEMES and not split.endswith(".json"):
            yield (
                f"data.split={split}: no such scheme; expected {', '.join(SPLIT_SCHEMES)}, "
                "[0.8,0.1,0.1], [800,100,100] or a .json file of ids"
            )
        return
    shown = f"data.split={_show(split)}"
    if len(split) != 3 or any(part <= 0 for part in split):
        yield f"{shown}: not three positive parts; expected train, val and test as [0.8,0.1,0.1]"
    elif all(part < 1 for part in split):
        if abs(sum(split) - 1) > 1e-6:
            yield f"{shown}: fractions sum to {sum(split):g}; expected 1"
    elif not all(float(part).is_integer() for part in split):
        yield f"{shown}: neither fractions nor counts; expected [0.8,0.1,0.1] or [800,100,100]"


def fold_exists(get: Get) -> Iterator[str]:
    """The tested fold is one of the folds, and there are folds."""
    fold, folds = get("data.fold"), get("data.folds")
    if fold and get("data.split") != "folds":
        yield (
            f"data.fold={fold}: data.split={_show(get('data.split'))} has no folds; "
            "expected data.split=folds"
        )
        return
    if fold >= folds:
        yield f"data.fold={fold}: data.folds={folds}; expected 0 to {folds - 1}"


def precision_is_safe(get: Get) -> Iterator[str]:
    """T5's activations pass fp16's largest number (65,504) and its loss becomes NaN; T5 was
    pretrained in bf16, which has the range of fp32 (transformers issue 9295).
    """
    if get("trainer.precision") == "16-mixed":
        yield (
            "trainer.precision=16-mixed: T5 overflows in fp16 (NaN loss); "
            "expected bf16-mixed or 32-true"
        )


def one_device(get: Get) -> Iterator[str]:
    """Several devices are still to come; Lightning alone would start this program again."""
    for key in ("devices", "num_nodes"):
        if get(f"trainer.{key}") != 1:
            yield (
                f"trainer.{key}={get(f'trainer.{key}')}: several devices are not supported yet; "
                "expected 1"
            )


def random_weights_have_a_shape(get: Get) -> Iterator[str]:
    """`weights=random` needs to know what to build."""
    if get("model.weights") == "random" and get("model.shape") is None:
        yield "model.shape=null: model.weights=random needs one; expected for example flan_t5_small"


def paths_do_not_collide(get: Get) -> Iterator[str]:
    """`resume` goes on inside its own directory and starts nothing else."""
    resume = get("resume")
    for key in ("rerun", "output_dir"):
        if resume is not None and get(key) is not None:
            yield f"{key}={get(key)}: cannot be joined with resume={resume}; expected one of them"


def targets_are_allowed(get: Get) -> Iterator[str]:
    """Every `_target_`, at any depth, lies in an allowed package; none is nested in arguments."""
    for group in ("logger", "callbacks"):
        for name, node in get(group).items():
            yield from _check_component(f"{group}.{name}", node)
    yield from _check_component("optim.optimizer", get("optim.optimizer"))


CHECKS: tuple[tuple[tuple[str, ...], Callable[[Get], Iterator[str]]], ...] = (
    (
        tuple(f"adapter.{key}" for key in ("method", *ADAPTER_KEYS)),
        adapter_keys_fit_method,
    ),
    (("adapter.target_modules", "adapter.scope", "adapter.layers"), target_modules_are_named),
    (
        ("data.source", "data.path", "data.train_path", "data.val_path", "data.test_path"),
        data_paths_fit,
    ),
    (("data.split", "data.train_path"), split_is_known),
    (("data.fold", "data.folds", "data.split"), fold_exists),
    (("trainer.precision",), precision_is_safe),
    (("trainer.devices", "trainer.num_nodes"), one_device),
    (("model.weights", "model.shape"), random_weights_have_a_shape),
    (("resume", "rerun", "output_dir"), paths_do_not_collide),
    (("logger", "callbacks", "optim.optimizer"), targets_are_allowed),
)


def _check_component(key: str, node: dict[str, Any]) -> Iterator[str]:
    if mistake := check_target(f"{key}._target_", node["_target_"]):
        yield mistake
    for argument, value in node.items():
        if argument != "_target_" and _holds_target(value):
            yield f"{key}.{argument}: a nested _target_ is not allowed; expected plain values"


def _holds_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_holds_target(item) for item in value.values())
    return isinstance(value, list) and any(_holds_target(item) for item in value)


def _show(value: Any) -> str:
    return str(value).replace(" ", "")
