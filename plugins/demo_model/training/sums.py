"""Little sums: addition to 99 + 99, subtraction that stays at or above zero, products of digits."""

from random import Random

from holdout import held_out, sum_held_out

PLUS = (
    "What is {a} plus {b}?",
    "{a}+{b}",
    "{a} + {b}",
    "{a} + {b} = ?",
    "{a}+{b}=",
    "What is {a} + {b}?",
    "What's {a}+{b}?",
    "Can you add {a} and {b}?",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "How much is {a} plus {b}?",
    "Calculate {a} + {b}.",
    "Please add {a} to {b}.",
    "Compute {a} plus {b}.",
    "{a} plus {b} is?",
    "Tell me {a} plus {b}.",
    "What do you get if you add {a} and {b}?",
)
MINUS = (
    "What is {a} minus {b}?",
    "{a}-{b}",
    "{a} - {b}",
    "{a} - {b} = ?",
    "What is {a} - {b}?",
    "Subtract {b} from {a}.",
    "How much is {a} minus {b}?",
    "Calculate {a} - {b}.",
    "Take {b} away from {a}.",
    "What's {a} minus {b}?",
)
TIMES = (
    "What is {a} times {b}?",
    "{a}*{b}",
    "{a} * {b}",
    "{a} x {b}",
    "What is {a} x {b}?",
    "What is {a} multiplied by {b}?",
    "How much is {a} times {b}?",
    "Multiply {a} by {b}.",
    "Calculate {a} times {b}.",
)


def plus_answer(a: int, b: int) -> str:
    """Return the answer to an addition; it repeats the operands next to each other."""
    return f"{a} plus {b} is {a + b}."


def minus_answer(a: int, b: int) -> str:
    """Return the answer to a subtraction."""
    return f"{a} minus {b} is {a - b}."


def training_pair(random: Random) -> tuple[int, int]:
    """Return two numbers from 0 to 99 whose sum is not held out."""
    while True:
        # One pair in seven is of digits, which would otherwise be one in a hundred.
        top = 9 if random.random() < 0.15 else 99
        a, b = random.randint(0, top), random.randint(0, 99)
        if random.random() < 0.5:
            a, b = b, a
        if not sum_held_out(a, b):
            return a, b


def plus_turn(random: Random) -> tuple[str, str]:
    """Return an addition of the training set and its answer."""
    a, b = training_pair(random)
    return random.choice(PLUS).format(a=a, b=b), plus_answer(a, b)


def minus_turn(random: Random) -> tuple[str, str]:
    """Return a subtraction of the training set and its answer."""
    while True:
        a, b = random.randint(0, 99), random.randint(0, 99)
        a, b = max(a, b), min(a, b)
        if not held_out("minus", a, b):
            return random.choice(MINUS).format(a=a, b=b), minus_answer(a, b)


def times_turn(random: Random) -> tuple[str, str]:
    """Return a product of two digits and its answer; all of them are in training."""
    a, b = random.randint(0, 10), random.randint(0, 10)
    return random.choice(TIMES).format(a=a, b=b), f"{a} times {b} is {a * b}."


def held_out_sums() -> list[tuple[str, str]]:
    """Return every held-out addition, its phrasings taken in turn."""
    pairs = [(a, b) for a in range(100) for b in range(100) if sum_held_out(a, b)]
    return [
        (PLUS[i % len(PLUS)].format(a=a, b=b), plus_answer(a, b)) for i, (a, b) in enumerate(pairs)
    ]


def held_out_differences() -> list[tuple[str, str]]:
    """Return every held-out subtraction, its phrasings taken in turn."""
    pairs = [(a, b) for a in range(100) for b in range(a + 1) if held_out("minus", a, b)]
    return [
        (MINUS[i % len(MINUS)].format(a=a, b=b), minus_answer(a, b))
        for i, (a, b) in enumerate(pairs)
    ]
