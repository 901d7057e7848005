"""Makes clean sentences look like hurried e-mail: typos, lost punctuation, shouting, breaks."""

import random

SHORTHAND = {
    "please": ["pls", "plz"], "you": ["u"], "because": ["bc", "becuase", "cuz"],
    "thanks": ["thx", "thanx"], "doctor": ["dr", "docter"], "with": ["w/", "wiht"],
    "and": ["&", "adn"], "are": ["r"], "would": ["woud"], "the": ["teh"], "people": ["ppl"],
    "know": ["no", "kno"], "received": ["recieved"], "doctors": ["drs"], "to": ["2"],
}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz"
JOINTS = [" ", " ", " ", " ", "  ", "\n", "\n\n"]


def typo(rng: random.Random, word: str) -> str:
    """Returns the word with one slip of the fingers."""
    if word in SHORTHAND and rng.random() < 0.5:
        return rng.choice(SHORTHAND[word])
    if len(word) < 4 or not word.isalpha():
        return word
    i = rng.randrange(1, len(word) - 1)
    match rng.randrange(4):
        case 0:
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        case 1:
            return word[:i] + word[i + 1 :]
        case 2:
            return word[:i] + word[i] + word[i:]
        case _:
            return word[:i] + rng.choice(LETTERS) + word[i + 1 :]


def roughen(rng: random.Random, sentence: str, rate: float, keep: set[str]) -> str:
    """Returns the sentence with typos at the given rate per word.

    Args:
        rng: the source of all randomness.
        sentence: a clean sentence.
        rate: the chance of a typo per word.
        keep: words that stay as they are (those of the focus term).
    """
    if rate == 0:
        return sentence
    words = []
    for word in sentence.split(" "):
        bare = word.strip(".,?!:()")
        if bare and bare not in keep and bare[0] != "[" and rng.random() < rate:
            word = word.replace(bare, typo(rng, bare), 1)
        words.append(word)
    return " ".join(words)


def dress(rng: random.Random, sentence: str, sloppiness: float) -> str:
    """Returns the sentence with capitals and end marks, more or less as they should be."""
    if rng.random() < sloppiness:
        sentence = sentence.rstrip(".?") + rng.choice(["", ",", "...", "!!", " ??", "."])
    if rng.random() < sloppiness / 4:
        return sentence.upper()
    if rng.random() < 1 - sloppiness:
        sentence = sentence[:1].upper() + sentence[1:].replace(" i ", " I ")
    return sentence


def join(rng: random.Random, sentences: list[str]) -> str:
    """Joins sentences with spaces and now and then line breaks."""
    text = sentences[0]
    for sentence in sentences[1:]:
        text += rng.choice(JOINTS) + sentence
    return text
