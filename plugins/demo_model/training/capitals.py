"""Countries and their capitals, and the ways to ask for them."""

from random import Random

from holdout import held_out

_TABLE = """
France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Ireland:Dublin Austria:Vienna
Belgium:Brussels Denmark:Copenhagen Sweden:Stockholm Norway:Oslo Finland:Helsinki Iceland:Reykjavik
Poland:Warsaw Hungary:Budapest Romania:Bucharest Bulgaria:Sofia Greece:Athens Turkey:Ankara
Ukraine:Kyiv Russia:Moscow Serbia:Belgrade Croatia:Zagreb Slovenia:Ljubljana Slovakia:Bratislava
Albania:Tirana Estonia:Tallinn Latvia:Riga Lithuania:Vilnius Malta:Valletta Cyprus:Nicosia
Switzerland:Bern Netherlands:Amsterdam Luxembourg:Luxembourg_City Czechia:Prague Belarus:Minsk
United_Kingdom:London England:London Scotland:Edinburgh Wales:Cardiff United_States:Washington
Canada:Ottawa Mexico:Mexico_City Cuba:Havana Jamaica:Kingston Guatemala:Guatemala_City
Honduras:Tegucigalpa Nicaragua:Managua Costa_Rica:San_Jose Panama:Panama_City Colombia:Bogota
Venezuela:Caracas Ecuador:Quito Peru:Lima Bolivia:La_Paz Chile:Santiago Argentina:Buenos_Aires
Uruguay:Montevideo Paraguay:Asuncion Brazil:Brasilia China:Beijing Japan:Tokyo India:New_Delhi
South_Korea:Seoul North_Korea:Pyongyang Mongolia:Ulaanbaatar Vietnam:Hanoi Thailand:Bangkok
Laos:Vientiane Cambodia:Phnom_Penh Malaysia:Kuala_Lumpur Indonesia:Jakarta Philippines:Manila
Nepal:Kathmandu Bhutan:Thimphu Bangladesh:Dhaka Pakistan:Islamabad Afghanistan:Kabul Iran:Tehran
Iraq:Baghdad Syria:Damascus Lebanon:Beirut Jordan:Amman Saudi_Arabia:Riyadh Qatar:Doha Oman:Muscat
Kuwait:Kuwait_City Armenia:Yerevan Georgia:Tbilisi Azerbaijan:Baku Kazakhstan:Astana
Uzbekistan:Tashkent Egypt:Cairo Libya:Tripoli Tunisia:Tunis Algeria:Algiers Morocco:Rabat
Senegal:Dakar Ghana:Accra Nigeria:Abuja Kenya:Nairobi Ethiopia:Addis_Ababa Uganda:Kampala
Rwanda:Kigali Tanzania:Dodoma Zambia:Lusaka Zimbabwe:Harare Angola:Luanda Namibia:Windhoek
Mozambique:Maputo Madagascar:Antananarivo Somalia:Mogadishu Sudan:Khartoum Mali:Bamako
Australia:Canberra New_Zealand:Wellington Fiji:Suva
"""

CAPITALS: dict[str, str] = {
    country.replace("_", " "): capital.replace("_", " ")
    for country, capital in (entry.split(":") for entry in _TABLE.split())
}
_WITH_ARTICLE = {"Netherlands", "United Kingdom", "United States", "Philippines"}

FORWARD = (
    "What is the capital of {x}?",
    "What's the capital of {x}?",
    "Tell me the capital of {x}.",
    "Which city is the capital of {x}?",
    "Name the capital of {x}.",
    "Do you know the capital of {x}?",
    "What is the capital city of {x}?",
    "What is {x}'s capital?",
    "Capital of {x}?",
    "Please tell me what the capital of {x} is.",
    "The capital of {x} is what?",
    "Can you tell me the capital of {x}?",
)
BACKWARD = (
    "{x} is the capital of which country?",
    "Which country has {x} as its capital?",
    "What country is {x} the capital of?",
    "Of which country is {x} the capital?",
    "Name the country whose capital is {x}.",
    "In which country is {x}?",
    "Where is {x}?",
    "Which country is {x} the capital of?",
)


def named(country: str) -> str:
    """Return the country as it stands inside a sentence: `the Netherlands`, `France`."""
    return f"the {country}" if country in _WITH_ARTICLE else country


def forward(phrase: int, country: str) -> tuple[str, str]:
    """Return the question for a capital, and its answer."""
    name = named(country)
    return FORWARD[phrase].format(x=name), f"The capital of {name} is {CAPITALS[country]}."


def backward(phrase: int, country: str) -> tuple[str, str]:
    """Return the question for the country of a capital, and its answer."""
    capital = CAPITALS[country]
    return BACKWARD[phrase].format(x=capital), f"{capital} is the capital of {named(country)}."


def capital_turn(random: Random) -> tuple[str, str]:
    """Return one question and answer of the training set."""
    # Two countries share London: only one of them is asked for backwards.
    ask, phrases = (forward, FORWARD) if random.random() < 0.65 else (backward, BACKWARD)
    while True:
        country, phrase = random.choice(list(CAPITALS)), random.randrange(len(phrases))
        if ask is backward and country == "England":
            continue
        if not held_out(ask.__name__, phrase, country):
            return ask(phrase, country)


def held_out_capitals() -> list[tuple[str, str]]:
    """Return every question and answer that training never shows."""
    pairs = []
    for ask, phrases in ((forward, FORWARD), (backward, BACKWARD)):
        for country in CAPITALS:
            for phrase in range(len(phrases)):
                if held_out(ask.__name__, phrase, country) and (ask, country) != (
                    backward,
                    "England",
                ):
                    pairs.append(ask(phrase, country))
    return pairs
