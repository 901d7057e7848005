"""Where the configuration files lie, and which groups and choices they offer."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

# Building blocks of other files, not choices of their own.
HIDDEN_OPTIONS = ("base",)


def conf_dir() -> Path:
    """The folder of configuration files: inside an installed package, or beside a checkout's."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def config_groups(command: str, config_dirs: Sequence[str] = ()) -> dict[str, list[str]]:
    """The config groups of a command and the choices of each."""
    groups: dict[str, list[str]] = {"hydra/launcher": [], "hydra/sweeper": []}
    defaults = _default_groups(command)
    for root in (conf_dir(), *map(Path, config_dirs)):
        for name in defaults:
            found = sorted(path.stem for path in (root / name).glob("*.yaml"))
            options = groups.setdefault(name, [])
            options.extend(o for o in found if o not in options and o not in HIDDEN_OPTIONS)
    return groups


def _default_groups(command: str) -> list[str]:
    groups: list[str] = []
    file: str | None = command
    while file is not None:
        document = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{file}.yaml"))
        assert isinstance(document, dict)
        file = None
        for entry in document.get("defaults", []):
            if isinstance(entry, dict):
                groups.extend(name for name in map(str, entry) if not name.startswith("override"))
            elif entry != "_self_":
                file = str(entry)
    return groups
