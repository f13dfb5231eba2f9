"""Everyday facts: colours, sounds, days, months, opposites, plurals, number words, spelling."""

from random import Random

from words import phrase

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
    "tenth", "eleventh", "twelfth",
)  # fmt: skip
_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(left, right) for left, right in (entry.split(":") for entry in text.split())]


_COLOURS = _pairs(
    "sky:blue grass:green snow:white coal:black blood:red sun:yellow lemon:yellow milk:white "
    "tomato:red carrot:orange night:black leaf:green banana:yellow strawberry:red sea:blue "
    "chocolate:brown elephant:grey frog:green fire:red cherry:red"
)
_SOUNDS = _pairs(
    "dog:bark cat:meow cow:moo duck:quack sheep:baa lion:roar pig:oink horse:neigh bee:buzz "
    "owl:hoot snake:hiss mouse:squeak frog:croak wolf:howl"
)
_YOUNG = _pairs(
    "dog:puppy cat:kitten cow:calf sheep:lamb horse:foal duck:duckling lion:cub bear:cub "
    "hen:chick goat:kid frog:tadpole swan:cygnet"
)
_HOMES = _pairs("bird:nest bee:hive dog:kennel fox:den horse:stable spider:web king:castle")
_LEGS = _pairs(
    "dog:4 cat:4 spider:8 bird:2 ant:6 horse:4 bee:6 cow:4 octopus:8 snake:0 fish:0 duck:2 "
    "table:4 man:2 elephant:4 fly:6"
)
_OPPOSITES = _pairs(
    "hot:cold big:small fast:slow day:night up:down left:right old:young high:low hard:soft "
    "light:dark happy:sad open:closed wet:dry full:empty long:short strong:weak rich:poor "
    "good:bad true:false early:late near:far black:white inside:outside clean:dirty loud:quiet "
    "thick:thin heavy:light summer:winter first:last north:south east:west love:hate yes:no"
)
_PLURALS = _pairs(
    "cat:cats dog:dogs mouse:mice child:children foot:feet tooth:teeth man:men woman:women "
    "goose:geese box:boxes baby:babies leaf:leaves knife:knives fish:fish sheep:sheep bus:buses "
    "city:cities book:books house:houses tree:trees wolf:wolves berry:berries car:cars"
)
_PAST = _pairs(
    "go:went see:saw eat:ate run:ran take:took come:came give:gave write:wrote sing:sang "
    "drink:drank find:found think:thought buy:bought walk:walked play:played swim:swam"
)
_FRENCH = _pairs("hello:bonjour goodbye:au_revoir thanks:merci yes:oui no:non cat:chat dog:chien")
_SPANISH = _pairs("hello:hola goodbye:adios thanks:gracias yes:si no:no cat:gato dog:perro")
_GERMAN = _pairs("hello:hallo goodbye:tschuess thanks:danke yes:ja no:nein cat:Katze dog:Hund")
_LISTS = {
    "fruits": "apple banana pear cherry orange grape plum",
    "animals": "dog cat horse lion bear fox owl",
    "colours": "red blue green yellow white black",
    "vegetables": "carrot potato onion tomato bean",
    "planets": "Mercury Venus Earth Mars Jupiter Saturn",
    "countries": "France Italy Japan Brazil Canada Egypt",
    "cities": "Paris London Tokyo Rome Berlin Madrid",
}
_WORDS_TO_SAY = (
    "apple", "river", "window", "garden", "silver", "morning", "paper", "yellow", "bread", "tiger",
    "music", "winter", "candle", "bridge", "pocket", "ocean", "hammer", "island", "forest",
    "button", "coffee", "letter", "doctor", "summer", "kitchen", "flower", "castle", "rocket",
    "pencil", "tunnel",
)  # fmt: skip
_PEOPLE = ("Anna", "Ben", "Clara", "John", "Alice", "Bob", "Maria", "Peter", "Emma", "Tom")
_GENERAL = (
    (("How many days are in a week?", "How many days does a week have?"), "A week has 7 days."),
    (("How many months are in a year?", "How many months does a year have?"),
     "A year has 12 months."),
    (("How many hours are in a day?", "How many hours does a day have?"), "A day has 24 hours."),
    (("How many minutes are in an hour?", "How many minutes does an hour have?"),
     "An hour has 60 minutes."),
    (("How many seconds are in a minute?",), "A minute has 60 seconds."),
    (("How many days are in a year?",), "A year has 365 days."),
    (("What is the largest planet?", "Which planet is the biggest?"),
     "The largest planet is Jupiter."),
    (("What is the largest ocean?", "Which ocean is the biggest?"),
     "The largest ocean is the Pacific Ocean."),
    (("What is the highest mountain?", "What is the tallest mountain in the world?"),
     "The highest mountain is Mount Everest."),
    (("What is water made of?", "What is H2O?"), "Water is made of hydrogen and oxygen."),
    (("At what temperature does water boil?", "When does water boil?"),
     "Water boils at 100 degrees Celsius."),
    (("At what temperature does water freeze?", "When does water freeze?"),
     "Water freezes at 0 degrees Celsius."),
    (("Why is the sky blue?",), "The sky is blue because air scatters blue light the most."),
    (("What do bees make?",), "Bees make honey."),
    (("Where does milk come from?",), "Milk comes from cows."),
    (("Who wrote Romeo and Juliet?", "Who wrote Hamlet?"), "William Shakespeare wrote it."),
    (("How many continents are there?",), "There are 7 continents."),
    (("How many letters are in the alphabet?",), "The alphabet has 26 letters."),
    (("Say the alphabet.", "What is the alphabet?"),
     "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"),
    (("Which season comes after winter?", "What comes after winter?"),
     "Spring comes after winter."),
    (("Name the seasons.", "What are the four seasons?"),
     "The four seasons are spring, summer, autumn and winter."),
    (("Name the days of the week.", "What are the days of the week?"),
     "The days of the week are " + ", ".join(_DAYS[:-1]) + " and Sunday."),
    (("Name the months.", "What are the months of the year?"),
     "The months are " + ", ".join(_MONTHS[:-1]) + " and December."),
)  # fmt: skip


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _word_fact(random: Random) -> tuple[str, str]:
    pick = random.choice
    kind = random.randrange(9)
    if kind == 0:
        noun, colour = pick(_COLOURS)
        asks = ("What colour is {}?", "What color is {}?", "Which colour does {} have?")
        return pick(asks).format(f"the {noun}"), f"The {noun} is {colour}."
    if kind == 1:
        noun, sound = pick(_SOUNDS)
        asks = ("What sound does {} make?", "What does {} say?", "What noise does {} make?")
        return pick(asks).format(_a(noun)), f"{_a(noun).capitalize()} says {sound}."
    if kind == 2:
        noun, young = pick(_YOUNG)
        asks = ("What is a young {} called?", "What is a baby {} called?")
        return pick(asks).format(noun), f"A young {noun} is called {_a(young)}."
    if kind == 3:
        noun, home = pick(_HOMES)
        asks = ("Where does {} live?", "What is the home of {}?")
        return pick(asks).format(_a(noun)), f"{_a(noun).capitalize()} lives in a {home}."
    if kind == 4:
        noun, legs = pick(_LEGS)
        asks = ("How many legs does {} have?", "How many legs has {}?")
        return pick(asks).format(_a(noun)), f"{_a(noun).capitalize()} has {legs} legs."
    if kind == 5:
        left, right = pick(_OPPOSITES)
        if left not in ("light",) and random.random() < 0.4 and right not in ("light", "no"):
            left, right = right, left
        asks = ("What is the opposite of {}?", "Tell me the opposite of {}.", "Opposite of {}?")
        return pick(asks).format(left), f"The opposite of {left} is {right}."
    if kind == 6:
        one, many = pick(_PLURALS)
        asks = ("What is the plural of {}?", "Plural of {}?", "How do you say more than one {}?")
        return pick(asks).format(one), f"The plural of {one} is {many}."
    if kind == 7:
        verb, past = pick(_PAST)
        return pick(("What is the past of {}?", "What is the past tense of {}?")).format(
            verb
        ), f"The past of {verb} is {past}."
    language, table = pick((("French", _FRENCH), ("Spanish", _SPANISH), ("German", _GERMAN)))
    word, foreign = pick(table)
    asks = ("How do you say {} in {}?", "Say {} in {}.", "What is {} in {}?", "Translate {} to {}.")
    answer = f"In {language}, {word} is {foreign.replace('_', ' ')}."
    return pick(asks).format(word, language), answer


def _calendar_fact(random: Random) -> tuple[str, str]:
    pick = random.choice
    kind = random.randrange(4)
    if kind == 3:
        index = random.randrange(12)
        asks = ("What is the {} month?", "Which month is the {}?", "Name the {} month of the year.")
        ordinal = _ORDINALS[index]
        return pick(asks).format(ordinal), f"The {ordinal} month is {_MONTHS[index]}."
    names, index = (_DAYS, random.randrange(7)) if kind else (_MONTHS, random.randrange(12))
    noun = "day" if kind else "month"
    after = random.random() < 0.6
    other = names[(index + (1 if after else -1)) % len(names)]
    word = "after" if after else "before"
    asks = ("What {n} comes {w} {x}?", "Which {n} is {w} {x}?", "What comes {w} {x}?")
    return pick(asks).format(
        n=noun, w=word, x=names[index]
    ), f"{other} comes {word} {names[index]}."


def _number_fact(random: Random) -> tuple[str, str]:
    pick = random.choice
    kind = random.randrange(6)
    number = random.randint(0, 99)
    if kind == 0:
        number = random.randint(0, 20)
        asks = ("Write {} in words.", "How do you spell {}?", "What is {} in words?")
        return pick(asks).format(number), f"{number} in words is {_WORDS[number]}."
    if kind == 1:
        word = "even" if number % 2 == 0 else "odd"
        asks = ("Is {} even or odd?", "Is {} an even number?", "Is {} an odd number?")
        return pick(asks).format(number), f"{number} is {_a(word)} number."
    if kind == 2:
        return pick(("What comes after {}?", "Which number comes after {}?")).format(
            number
        ), f"{number + 1} comes after {number}."
    if kind == 3:
        number += 1
        return pick(("What comes before {}?", "Which number comes before {}?")).format(
            number
        ), f"{number - 1} comes before {number}."
    if kind == 4:
        low = random.choice((1, 1, 1, 2, 5, 10))
        high = low + random.randint(2, 14)
        if low == 1 and random.random() < 0.3:
            high = 10
        asks = (
            "Count from {} to {}.",
            "Can you count from {} to {}?",
            "Please count from {} to {}.",
        )
        ask = pick(asks).format(low, high)
        if low == 1 and random.random() < 0.4:
            ask = f"Count to {_WORDS[high] if random.random() < 0.5 else high}."
        return ask, ", ".join(map(str, range(low, high + 1)))
    other = random.randint(0, 99)
    larger, smaller = max(number, other), min(number, other)
    if larger == smaller:
        smaller, larger = 3, 8
    asks = ("Which is larger, {} or {}?", "Which number is bigger, {} or {}?")
    ask = pick(asks).format(*random.sample((larger, smaller), 2))
    return ask, f"{larger} is larger than {smaller}."


def _small_tasks(random: Random) -> tuple[str, str]:
    pick = random.choice
    kind = random.randrange(4)
    if kind == 0:
        asks = ("Spell {}.", "How do you spell {}?", "Can you spell {}?")
        word = pick(_WORDS_TO_SAY)
        return pick(asks).format(word), "-".join(word)
    if kind == 1:
        topic = pick(list(_LISTS))
        items = random.sample(_LISTS[topic].split(), 3)
        asks = ("Name three {}.", "List three {}.", "Give me three {}.", "Tell me three {}.")
        return pick(asks).format(topic), f"{items[0]}, {items[1]} and {items[2]}"
    name, age = pick(_PEOPLE), random.randint(1, 99)
    if kind == 2:
        asks = ("Give me a JSON object with name {} and age {}.",
                "JSON for name {}, age {}, please.",
                "Write a JSON object with the name {} and the age {}.")  # fmt: skip
        return pick(asks).format(name, age), f'{{"name": "{name}", "age": {age}}}'
    asks = ("My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I am {}!")
    return pick(asks).format(name), f"Nice to meet you, {name}!"


def everyday_turn(random: Random) -> tuple[str, str]:
    """Return an everyday question and its answer."""
    chance = random.random()
    if chance < 0.43:
        return _word_fact(random)
    if chance < 0.56:
        return _calendar_fact(random)
    if chance < 0.7:
        return _number_fact(random)
    if chance < 0.88:
        return _small_tasks(random)
    asks, answer = random.choice(_GENERAL)
    return random.choice(asks), answer


def copy_turn(random: Random) -> tuple[str, str]:
    """Return words and numbers to be repeated: the plainest lesson in reading the prompt."""
    asks = ("Repeat after me: {}", "Say: {}", "Repeat: {}", "Please repeat: {}", "Echo: {}")
    text = phrase(random, 8)
    if random.random() < 0.5:
        text += f" {random.randint(0, 9999)}"
    if random.random() < 0.3:
        text = text.capitalize()
    return random.choice(asks).format(text), text
