"""Where a backbone or tokenizer comes from: a folder or the Hub; what is wrong there, in one line.

Reads config.json at most; weights and tokenizers are loaded by `backbones`.
"""

import difflib
import functools
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meqsum_lightning.errors import Unreachable, UserError
from meqsum_lightning.models.shapes import SHAPE_NAMES, embedded_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SUPPORTED_TYPES = ("t5", "bart")
# Seconds to wait for the Hub's first answer: enough for a slow line, short enough to fail kindly.
_HUB_TIMEOUT = 8.0
_EXPECTED_SOURCE = "expected `embedded`, a folder with a T5 or BART model, or a Hub id"


@dataclass(frozen=True)
class Source:
    """A backbone or tokenizer that was found.

    Attributes:
        folder: Where its files are; for a Hub id the cached snapshot.
        hub_id: Its Hub id; None for a local folder.
        commit: The commit on the Hub.
        offline: Whether the Hub does not answer, so that only cached files can be had.
    """

    folder: Path
    hub_id: str | None = None
    commit: str | None = None
    offline: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        """Where `from_pretrained` finds it; code that comes with it is never run."""
        if self.hub_id is None:
            return {"pretrained_model_name_or_path": self.folder, "trust_remote_code": False}
        return {
            "pretrained_model_name_or_path": self.hub_id,
            "revision": self.commit,
            "local_files_only": self.offline,
            "trust_remote_code": False,
        }


def resolve(name: str, revision: str | None, key: str = "model.backbone") -> Source:
    """Find a backbone or tokenizer; on the Hub at a revision, waiting seconds at most.

    Args:
        name: `embedded`, a folder, or a Hub id.
        revision: Commit, tag or branch on the Hub; None for the newest.
        key: The key that messages name.

    Raises:
        UserError: There is none, or it cannot be reached or read.
    """
    folder = local_folder(name)
    if folder is None:
        return _resolve_hub(name, revision, key)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{key}={name}: {kind}; {_EXPECTED_SOURCE}")
    return Source(folder)


def local_folder(name: str) -> Path | None:
    """The folder that a name means, or None for a Hub id; whether it exists is not checked."""
    if name == "embedded":
        return embedded_folder()
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return path if looks_like_path or path.exists() else None


def read_config(folder: Path, name: str) -> "PretrainedConfig":
    """Read a model folder's config.json.

    Args:
        folder: The folder.
        name: What the user called it.

    Raises:
        UserError: There is none, it is not valid, or it is not that of a whole T5 or BART.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = "an adapter folder (use run=DIR)" if adapter else "a folder without config.json"
        raise UserError(f"model.backbone={name}: {what}, not a model; {_EXPECTED_SOURCE}")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = raw.get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"model.backbone={name}: config.json is not valid ({first_line(error)}); "
            "expected a model folder as transformers saves it"
        ) from error
    if kind not in _SUPPORTED_TYPES:
        raise UserError(
            f"model.backbone={name}: its architecture is {kind or 'not named'}, "
            "and questions are summarized by sequence-to-sequence models; expected a T5 or BART"
        )
    architectures = raw.get("architectures") or []
    if raw.get("is_encoder_decoder") is False or any("EncoderModel" in a for a in architectures):
        raise UserError(
            f"model.backbone={name}: only one half of a {kind} model; "
            "expected an encoder with a decoder"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"model.backbone={name}: config.json is not valid ({first_line(error)}); "
            "expected a model folder as transformers saves it"
        ) from error
    return cast("PretrainedConfig", config)


def first_line(error: BaseException) -> str:
    """The first line of a message, short enough for a line of ours; without one, the type."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _resolve_hub(name: str, revision: str | None, key: str) -> Source:
    """Find (or download) config.json on the Hub; every failure is one line."""
    from huggingface_hub import errors, hf_hub_download, utils

    try:
        utils.validate_repo_id(name)
    except errors.HFValidationError as error:
        raise UserError(
            f"{key}={name}: neither a folder nor a Hub id; {_EXPECTED_SOURCE}"
        ) from error
    close = difflib.get_close_matches(name, SHAPE_NAMES, n=1, cutoff=0.8)
    hint = f"did you mean model={close[0]}? " if close else ""
    offline = not _hub_answers()
    try:
        path = hf_hub_download(
            name,
            "config.json" if key == "model.backbone" else "tokenizer_config.json",
            revision=revision,
            etag_timeout=_HUB_TIMEOUT,
            local_files_only=offline,
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{key}={name}: gated on the Hub; accept its terms at https://huggingface.co/{name} "
            "and log in with `hf auth login`; expected a model that you can read"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{key}={name}: no such model on the Hub (or it is private); {hint}{_EXPECTED_SOURCE}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"model.revision={revision}: {name} has no such revision; "
            "expected a commit, tag or branch"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(
            f"{key}={name}: not in the local cache, and the Hugging Face Hub cannot be reached; "
            f"{hint}expected a network, a local folder, or model=tiny_t5"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{key}={name}: the repository is not a transformers model; {_EXPECTED_SOURCE}"
        ) from error
    except OSError as error:
        raise UserError(f"{key}={name}: {first_line(error)}; {_EXPECTED_SOURCE}") from error
    folder = Path(path).parent  # .../snapshots/COMMIT
    return Source(folder, name, folder.name, offline)


@functools.lru_cache(maxsize=1)
def _hub_answers() -> bool:
    """Whether the Hub can be reached, by one short request (its client retries for 23 s)."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_HUB_TIMEOUT).close()
    except urllib.error.HTTPError:  # it answered, if only to refuse
        return True
    except urllib.error.URLError as error:  # certificates are the Hub client's business
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True
