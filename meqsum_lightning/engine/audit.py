"""`meqsum data audit`: reads rows, audits them, prints or writes the result."""

import json
from pathlib import Path

from rich.console import Console

from meqsum_lightning.config.schema import DataCommandConfig
from meqsum_lightning.data.audit import audit, render
from meqsum_lightning.data.sources import load_rows
from meqsum_lightning.errors import UserError
from meqsum_lightning.files import write_text
from meqsum_lightning.models.backbones import load_tokenizer


def audit_command(cfg: DataCommandConfig) -> None:
    """Audits the configured data set with the tokenizer of the configured backbone.

    Args:
        cfg: A validated configuration.

    Raises:
        UserError: Rows can't be read, or the output exists.
    """
    output = Path(cfg.output).expanduser() if cfg.output else None
    if output is not None and output.exists():
        raise UserError(f"output={output}: exists; expected a new json file")
    rows = load_rows(cfg.data)
    result = audit(rows, load_tokenizer(cfg.model), cfg.data)
    render(result, Console(highlight=False))
    if output is not None:
        write_text(output, json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
