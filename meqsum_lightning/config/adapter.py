"""Words that the adapter's keys take beside numbers: multiples of the rank, names of layers.

What they select in a backbone is `models/targets.py`; here nothing knows a model.
"""

import math
import re

PRESETS = ("qv", "qkv", "attention", "ffn", "all")
# Last names of the linear layers in their blocks, so that a plain `q` is told from a preset with a
# slip before anything loads. Whether the backbone has one is checked on its shape.
_T5_LAYERS = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")
_BART_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
LAYER_NAMES = frozenset((*_T5_LAYERS, *_BART_LAYERS))
MAX_RANK = 4096

_MULTIPLE = re.compile(r"(\d+\.?\d*|\.\d+)?r", re.ASCII)


def rank_multiple(text: str) -> float:
    """The factor of a text such as `2r`, `0.5r` or `r`.

    Raises:
        ValueError: It is no such text, or the factor is not above 0.
    """
    match = _MULTIPLE.fullmatch(text)
    factor = float(match[1] or 1) if match else 0.0
    if not 0 < factor * MAX_RANK < math.inf:
        raise ValueError(f"{text} is no positive multiple of the rank")
    return factor


def checked_multiple(text: str) -> str:
    """The text itself where `rank_multiple` understands it.

    Raises:
        ValueError: It does not.
    """
    rank_multiple(text)
    return text


def alpha_value(alpha: float | str | None, r: int) -> float:
    """The numerator of the scale: alpha itself, a multiple of the rank, or 2 r for None."""
    if alpha is None:
        return 2.0 * r
    return rank_multiple(alpha) * r if isinstance(alpha, str) else float(alpha)


def is_layer_name(text: str) -> bool:
    """Whether a text is the name of a layer (`q`, `EncDecAttention.v`) and no preset."""
    return text not in PRESETS and text.rpartition(".")[2] in LAYER_NAMES
