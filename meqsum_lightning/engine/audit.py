"""`meqsum data audit`: reads rows, audits them, prints or writes the result."""

from pathlib import Path

from rich.console import Console

from meqsum_lightning.config.schema import DataCommandConfig
from meqsum_lightning.data.audit import Audit, audit, render
from meqsum_lightning.data.sources import load_rows
from meqsum_lightning.files import claimed_file, write_json
from meqsum_lightning.models.backbones import load_tokenizer


def audit_command(cfg: DataCommandConfig) -> None:
    """Audits the configured data set with the tokenizer of the configured backbone.

    Args:
        cfg: A validated configuration.

    Raises:
        UserError: Rows can't be read, or the output exists.
    """
    if cfg.output is None:
        _audit(cfg)
        return
    with claimed_file(Path(cfg.output).expanduser(), "output") as output:
        write_json(output, _audit(cfg).to_dict())


def _audit(cfg: DataCommandConfig) -> Audit:
    result = audit(load_rows(cfg.data), load_tokenizer(cfg.model), cfg.data)
    render(result, Console(highlight=False))
    return result
