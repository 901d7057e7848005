"""Data flows one way: each layer imports only what stands before it."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "meqsum_lightning"
BASE = {"errors", "files", "config"}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "logs": set(),
    "signals": set(),
    "config": {"errors", "config"},
    "data": BASE | {"data"},
    "models": BASE | {"models"},
    "metrics": BASE | {"metrics"},
    "runs": BASE | {"runs"},
    "plan": BASE | {"models", "plan"},
    "engine": BASE | {"data", "models", "metrics", "runs", "logs", "signals", "engine"},
    "sweeps": BASE
    | {"data", "models", "runs", "logs", "plan", "engine", "console", "signals", "sweeps"},
}


def imported(path: Path) -> set[str]:
    """Layers of this package that a file imports, inside functions too."""
    layers = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("meqsum_lightning."):
                layers.add(name.split(".")[1])
    return layers


def test_layers_import_only_what_stands_before_them():
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer in ALLOWED:
            seen.add(layer)
            assert imported(path) <= ALLOWED[layer], path
    assert seen == set(ALLOWED)
