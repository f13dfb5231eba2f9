"""Short stories from a small grammar: a hero, a place, a thing lost or found, a friend, an end."""

from random import Random

from holdout import held_out

HEROES = (
    "fox", "cat", "dog", "bear", "mouse", "rabbit", "owl", "hedgehog", "frog", "duck", "turtle",
    "squirrel", "lion", "elephant", "penguin", "dragon", "robot", "bird", "wolf", "horse", "fish",
    "bee", "goat", "pig", "sheep", "monkey", "tiger", "whale", "snail", "girl", "boy", "king",
    "princess", "pirate", "wizard", "knight", "sailor", "baker", "gardener", "ghost",
)  # fmt: skip
_NAMES = (
    "Anna", "Ben", "Clara", "Daniel", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Kira",
    "Leo", "Mia", "Nora", "Oscar", "Paula", "Rosa", "Sam", "Tilda", "Victor", "Lily", "Max",
    "Toby", "Ruby", "Finn",
)  # fmt: skip
PLACES = (
    "forest", "village", "garden", "castle", "valley", "harbour", "mountain", "river", "island",
    "meadow", "desert", "city", "lake", "farm", "cave",
)  # fmt: skip
_THINGS = (
    "key", "lamp", "map", "red ball", "silver bell", "little boat", "old book", "golden apple",
    "warm scarf", "blue stone", "music box", "letter", "magic feather", "wooden whistle", "kite",
    "small mirror", "basket of berries", "bright lantern",
)  # fmt: skip
_TRAITS = (
    "small", "brave", "curious", "shy", "clever", "cheerful", "lonely", "kind", "young", "quiet",
    "lazy", "funny", "hungry", "gentle",
)  # fmt: skip
_WEATHER = (
    "the sun was shining", "it was raining", "snow covered the ground", "the wind was strong",
    "a thick fog came", "the sky was clear and blue",
)  # fmt: skip
_LESSONS = (
    "even a small friend can be a great help", "it is good to ask for help",
    "sharing makes everyone happy", "the best treasure is a good friend",
    "a kind word opens many doors", "patience brings you far", "it is never too late to be brave",
)  # fmt: skip

ASK = (
    "Tell me a story about {x}.",
    "Tell me a short story about {x}.",
    "Can you tell me a story about {x}?",
    "Write a story about {x}.",
    "Write a short story about {x}.",
    "I want to hear a story about {x}.",
    "Please write a little story about {x}.",
    "Could you tell a story about {x}?",
)
ASK_WITH_PLACE = (
    "Tell me a story about {x} in {p}.",
    "Write a story about {x} and {p}.",
    "A short story about {x} in {p}, please.",
)
_ASK_ANY = (
    "Tell me a story.", "Tell me a short story.", "Can you tell me a story?", "Write a story.",
    "I would like a story.", "Do you know a story?", "Tell me a bedtime story.",
    "Tell me something.", "Tell me another story.",
)  # fmt: skip


def article(noun: str) -> str:
    """Return the noun with `a` or `an`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def story(random: Random, hero: str, place: str) -> str:
    """Return a story of 60 to 150 words about `hero` in `place`."""
    name, friend_name = random.sample(_NAMES, 2)
    friend = random.choice([other for other in HEROES if other != hero])
    trait, thing, other_thing = random.choice(_TRAITS), *random.sample(_THINGS, 2)
    weather, lesson = random.choice(_WEATHER), random.choice(_LESSONS)
    pick = random.choice
    openings = (
        f"Once upon a time there was {article(trait)} {hero} named {name}. "
        f"{name} lived in a {place}.",
        f"In a {place} far away lived {article(trait)} {hero} called {name}.",
        f"There once was {article(hero)} named {name}, who lived near a {place}. "
        f"{name} was very {trait}.",
    )
    troubles = (
        f"One morning {weather}, and {name} could not find the {thing}. "
        f"{name} looked under the bed and behind the door, but the {thing} was gone.",
        f"One day {weather}. {name} went for a walk and found {article(thing)} on the path. "
        f'"Who has lost this?" asked {name}.',
        f"One evening {weather}, and {name} heard a noise. Somebody was crying. "
        f"It was {article(friend)} who had lost {article(thing)}.",
    )
    trouble = random.randrange(3)
    if trouble == 2:
        meeting = pick(
            (
                f'"My name is {friend_name}," said the {friend}. "Can you help me?"',
                f'"Do not cry," said {name}. "What is your name?" '
                f'"I am {friend_name}," said the {friend}.',
            )
        )
    else:
        meeting = pick(
            (
                f"Then {name} met {article(friend)} named {friend_name}. "
                f'"Can you help me?" asked {name}. "Of course," said {friend_name}.',
                f"Soon {article(friend)} came along. "
                f'"I am {friend_name}," said the {friend}. "Let us look together."',
            )
        )
    middles = (
        f"They walked through the {place} all day, and they were not afraid. "
        f"On the way they found {article(other_thing)}, but that was not what they were after.",
        f"They asked everyone in the {place}. Nobody knew the answer, but they did not give up.",
        f"Together they climbed a hill and looked around. "
        f"Far below they saw {article(other_thing)} in the grass.",
        f"They shared some bread and made a plan. {friend_name} would look on the left, "
        f"and {name} would look on the right.",
    )
    if trouble == 1:
        solution = pick(
            (
                f"At last they found an old woman who was looking for the {thing}. "
                f"She thanked them and gave them cake.",
                f"In the end they learned that the {thing} belonged to the {friend}'s mother. "
                f"She was very happy.",
            )
        )
    else:
        solution = pick(
            (
                f"At last they found the {thing} under a tree.",
                f"In the end the {thing} was in a place where nobody had looked: "
                f"behind a big stone.",
                f"When the moon came up, they saw the {thing} shining in the dark.",
            )
        )
    endings = (
        f"{name} and {friend_name} laughed and danced. From that day on the two were best friends.",
        f'"Thank you, {friend_name}," said {name}. They went home and had soup together.',
        f"That night {name} slept well, and {friend_name} came to visit every day.",
    )
    parts = [pick(openings), troubles[trouble], meeting]
    parts += random.sample(middles, random.choice((1, 1, 2)))
    parts += [solution, pick(endings)]
    if random.random() < 0.6:
        parts.append(f"And they learned that {lesson}.")
    return " ".join(parts)


def story_turn(random: Random) -> tuple[str, str]:
    """Return a request for a story of the training set, and the story."""
    while True:
        hero, place = random.choice(HEROES), random.choice(PLACES)
        if not held_out("story", hero, place):
            break
    chance = random.random()
    if chance < 0.2:
        return random.choice(_ASK_ANY), story(random, hero, place)
    phrase = random.choice(ASK_WITH_PLACE if chance < 0.45 else ASK)
    return phrase.format(x=article(hero), p=f"a {place}"), story(random, hero, place)


def held_out_stories() -> list[tuple[str, str, str]]:
    """Return request, hero and place for each combination that training never shows."""
    return [
        (ASK_WITH_PLACE[0].format(x=article(hero), p=f"a {place}"), hero, place)
        for hero in HEROES
        for place in PLACES
        if held_out("story", hero, place)
    ]
