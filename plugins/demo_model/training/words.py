"""Everyday nouns, and invented words, which can only be copied and not known by heart."""

from random import Random

NOUNS = (
    "apple", "river", "window", "garden", "silver", "morning", "paper", "yellow", "bread",
    "tiger", "music", "winter", "candle", "bridge", "pocket", "ocean", "hammer", "island",
    "forest", "button", "coffee", "letter", "doctor", "summer", "kitchen", "flower", "castle",
    "rocket", "pencil", "tunnel", "history", "price", "news", "recipe", "model", "python",
    "train", "hotel", "museum", "football", "guitar", "camera", "laptop", "weather", "science",
    "planet", "robot", "energy", "market", "school", "health", "travel",
)  # fmt: skip
_ONSETS = (
    "b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br",
    "ch", "cl", "dr", "fl", "gr", "pl", "sh", "st", "th", "tr",
)  # fmt: skip
_NUCLEI = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "oo")
_CODAS = ("", "", "", "n", "r", "l", "s", "m", "t", "x", "nd", "rt")


def invented(random: Random) -> str:
    """Return a word of two or three syllables that means nothing."""
    pick = random.choice
    count = random.choice((2, 2, 3))
    return "".join(pick(_ONSETS) + pick(_NUCLEI) for _ in range(count)) + pick(_CODAS)


def phrase(random: Random, longest: int = 4) -> str:
    """Return one to `longest` words, a third of them invented."""
    count = random.randint(1, longest)
    return " ".join(
        invented(random) if random.random() < 0.35 else random.choice(NOUNS) for _ in range(count)
    )
