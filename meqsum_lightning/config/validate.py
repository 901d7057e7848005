"""From a composed dictionary to a typed configuration: one function for the command line, for a
rerun and for Python. It reports every mistake at once, one line each.
"""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from meqsum_lightning.config.adapter import alpha_value, is_layer_name
from meqsum_lightning.config.checks import CHECKS
from meqsum_lightning.config.schema import SCHEMAS, AdapterConfig, Section
from meqsum_lightning.errors import UserError

PATH_KEYS = ("path", "train_path", "val_path", "test_path")

# What people call a key elsewhere, so that a slip of the other name is understood too.
SYNONYMS = {
    "rank": "adapter.r",
    "lora_r": "adapter.r",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target": "adapter.target_modules",
    "targets": "adapter.target_modules",
    "modules": "adapter.target_modules",
    "learning_rate": "optim.lr",
    "batch_size": "data.global_batch_size",
    "per_device_train_batch_size": "data.micro_batch_size",
    "epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "gradient_clip_val": "optim.clip_norm",
    "warmup_ratio": "optim.warmup",
    "num_beams": "generation.test_num_beams",
    "model_name": "model.backbone",
    "output": "output_dir",
    "monitor": "checkpoint.monitor",
    "patience": "checkpoint.patience",
}


def validate(raw: Mapping[str, Any], command: str, earlier: Iterable[str] = ()) -> Section:
    """Checks a composed configuration and fills in what follows from other keys.

    Args:
        raw: Plain nested dictionary, interpolations resolved.
        command: Name of the command, which decides the schema.
        earlier: Mistakes found before (in the overrides themselves), to be told together.

    Returns:
        The typed configuration of the command.

    Raises:
        UserError: With one line per mistake, `key=value: reason; expected ...`.
    """
    schema = SCHEMAS[command]
    lines = list(earlier)
    wrong: set[str] = set()
    model: Section | None = None
    try:
        model = schema.model_validate(raw)
    except ValidationError as error:
        found: dict[str, ErrorDetails] = {}
        for detail in error.errors(include_url=False):
            key = _key_of(detail["loc"], schema)
            if key not in found or _fits_better(detail, found[key]):
                found[key] = detail
        wrong = set(found)
        lines += [_line(key, detail, schema) for key, detail in found.items()]
    for keys, check in CHECKS:
        if all(_has(raw, key) for key in keys) and not any(_touches(key, wrong) for key in keys):
            lines.extend(check(lambda key: _get(raw, key)))
    if lines:
        raise UserError(list(dict.fromkeys(lines)))
    assert model is not None
    return _resolve(model)


def suggest(key: str, command: str) -> str | None:
    """The known key that `key` most likely means, or None."""
    known = key_paths(SCHEMAS[command])
    leaf = key.rpartition(".")[2]
    if leaf in SYNONYMS and SYNONYMS[leaf] in known:
        return SYNONYMS[leaf]
    parent = key.rpartition(".")[0]
    names = {path: path for path in known}
    for word, path in SYNONYMS.items():
        if path in known:
            names[f"{path.rpartition('.')[0]}.{word}".lstrip(".")] = path
    siblings = {name: path for name, path in names.items() if name.rpartition(".")[0] == parent}
    for pool, cutoff in ((siblings, 0.6), (names, 0.7)):
        close = difflib.get_close_matches(key, pool, n=1, cutoff=cutoff)
        if close:
            return pool[close[0]]
    by_leaf = {name.rpartition(".")[2]: path for name, path in names.items()}
    close = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)
    return by_leaf[close[0]] if close else None


@cache
def key_paths(schema: type[Section]) -> tuple[str, ...]:
    """Dotted paths of all keys of a schema, leaves only."""
    paths: list[str] = []
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            paths.extend(f"{name}.{path}" for path in key_paths(inner))
        else:
            paths.append(name)
    return tuple(paths)


def _resolve(model: Section) -> Section:
    """Fills in the values that follow from others, so that a stored configuration is complete."""
    changes: dict[str, Section] = {}
    adapter, data = getattr(model, "adapter", None), getattr(model, "data", None)
    if isinstance(adapter, AdapterConfig):
        changes["adapter"] = _resolve_adapter(adapter)
    if data is not None:
        update: dict[str, Any] = {key: _absolute(getattr(data, key)) for key in PATH_KEYS}
        if data.split is None:
            update["split"] = "given" if data.train_path is not None else [0.8, 0.1, 0.1]
        elif isinstance(data.split, str) and data.split.endswith(".json"):
            update["split"] = _absolute(data.split)
        changes["data"] = data.model_copy(update=update)
    backbone = getattr(model, "model", None)
    if backbone is not None:
        folders = {
            key: _absolute(value)
            for key in ("backbone", "tokenizer")
            if (value := getattr(backbone, key)) not in (None, "embedded")
            and Path(value).expanduser().is_dir()
        }
        changes["model"] = backbone.model_copy(update=folders)
    return model.model_copy(update=changes) if changes else model


def _resolve_adapter(adapter: AdapterConfig) -> AdapterConfig:
    """Alpha as a number once the rank is known, and a single module name as a list.

    With a budget the rank is not known yet: `models.budget.resolve_rank` needs the backbone.
    """
    update: dict[str, Any] = {}
    if adapter.r is not None:
        update["alpha"] = alpha_value(adapter.alpha, adapter.r)
    modules = adapter.target_modules
    if isinstance(modules, str) and is_layer_name(modules):
        # `-m adapter.target_modules=q,v` makes two jobs, each with a plain name.
        update["target_modules"] = [modules]
    return adapter.model_copy(update=update)


def _absolute(path: str | None) -> str | None:
    """A path that means the same from every folder: runs are resumed from elsewhere."""
    return None if path is None else str(Path(path).expanduser().absolute())


def _key_of(loc: tuple[int | str, ...], schema: type[Section]) -> str:
    """Dotted key of an error; pydantic appends the branch of a union, which is no key."""
    parts: list[str] = []
    current: Any = schema
    for part in loc:
        if isinstance(current, type) and issubclass(current, Section):
            parts.append(str(part))
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif parts and parts[0] in ("logger", "callbacks", "optim") and isinstance(part, str):
            parts.append(part)
    return ".".join(parts)


def _fits_better(detail: ErrorDetails, other: ErrorDetails) -> bool:
    """Whether an error of a union's later branch says more about the value than an earlier one's.

    That a value is none of the choices says most about a text, and least about a list.
    """
    if other["type"] == "literal_error":
        return not isinstance(other["input"], str)
    return (
        detail["type"] == "literal_error"
        and isinstance(other["input"], str)
        and (detail["input"] == other["input"])
    )


def _line(key: str, detail: ErrorDetails, schema: type[Section]) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        hint = suggest(key, next(name for name, known in SCHEMAS.items() if known is schema))
        shown = f"{key}={_show(detail['input'])}" if not isinstance(detail["input"], dict) else key
        return f"{shown}: no such key; " + (
            f"did you mean {hint}?" if hint else "expected one of those that --cfg job prints"
        )
    if kind == "missing":
        return f"{key}: missing; expected {_expected(key, schema)}"
    value = detail["input"]
    reason = {"literal_error": "no such choice"}.get(kind) or detail["msg"].replace(
        "Input should be", "should be"
    )
    expected = _expected(key, schema)
    close = (
        difflib.get_close_matches(str(value), expected.split(", "), n=1)
        if kind == "literal_error"
        else []
    )
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{key}={_show(value)}: {reason}; expected {expected}{hint}"


def _expected(key: str, schema: type[Section]) -> str:
    """What a key takes, in words, from the schema."""
    document = schema.model_json_schema()
    node: dict[str, Any] = document
    for part in key.split("."):
        node = _follow(node, document)
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        if not isinstance(node, dict):
            return "a value"
    if "expected" in node:
        return str(node["expected"])
    return _in_words(_follow(node, document), document)


def _follow(node: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        return document["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _in_words(node: dict[str, Any], document: dict[str, Any]) -> str:
    if "anyOf" in node:
        return " or ".join(_in_words(_follow(part, document), document) for part in node["anyOf"])
    if "enum" in node:
        return ", ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    kind = node.get("type")
    if kind == "array":
        return f"a list of ({_in_words(_follow(node.get('items', {}), document), document)})"
    word = {
        "integer": "an integer",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
        "object": "a mapping",
        "null": "null",
    }.get(str(kind), "a value")
    for name, sign in (
        ("minimum", ">="),
        ("exclusiveMinimum", ">"),
        ("maximum", "<="),
        ("exclusiveMaximum", "<"),
    ):
        if name in node:
            word += f" {sign} {node[name]:g}" if node[name] < 1e6 else f" {sign} {node[name]:.0f}"
    if "pattern" in node:
        word += f" like {node['pattern']}"
    return word


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f'"{value}"' if isinstance(value, str) and _looks_numeric(value) else str(value)


def _looks_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _has(raw: Mapping[str, Any], key: str) -> bool:
    node: Any = raw
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _get(raw: Mapping[str, Any], key: str) -> Any:
    node: Any = raw
    for part in key.split("."):
        node = node[part]
    return node


def _touches(key: str, wrong: set[str]) -> bool:
    return any(
        key == bad or key.startswith(bad + ".") or bad.startswith(key + ".") for bad in wrong
    )
