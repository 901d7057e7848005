"""How a question asks, by its first word: the strata of splits and the rows of reports.

It stands here because `data` and `metrics` both need it and import nothing of each other.
"""

import re

_FIRST_WORD = re.compile(r"\w+")
_KINDS = {
    **{word: word for word in ("who", "what", "where", "when", "why", "how", "which")},
    **dict.fromkeys(("whom", "whose"), "who"),
    **dict.fromkeys(("is", "are", "was", "were", "am"), "is/are"),
    **dict.fromkeys(("do", "does", "did"), "do/does"),
    **dict.fromkeys(("can", "could", "may", "might"), "can"),
    **dict.fromkeys(("should", "shall", "will", "would", "must"), "should/will"),
    **dict.fromkeys(("has", "have", "had"), "has/have"),
}

OTHER = "other"
QUESTION_WORDS = (*dict.fromkeys(_KINDS.values()), OTHER)
YES_NO = ("is/are", "do/does", "can", "should/will", "has/have")
"""Those of `QUESTION_WORDS` that ask for yes or no."""


def first_question_word(text: str) -> str:
    """The kind of a text's first word, one of `QUESTION_WORDS`; "other" without any word."""
    first = _FIRST_WORD.search(text.lower())
    return _KINDS.get(first.group(), OTHER) if first else OTHER
