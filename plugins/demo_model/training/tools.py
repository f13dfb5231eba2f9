"""Tool calls: schemas under many names, requests that need them, results and the answers to them.

Names, parameter names and descriptions vary so that the model has to read the list of tools.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from capitals import CAPITALS, capital_turn
from everyday import everyday_turn
from holdout import held_out
from smalltalk import talk_turn
from sums import PLUS, TIMES, plus_turn, training_pair
from words import NOUNS, invented, phrase

CITIES = (
    *dict.fromkeys(CAPITALS.values()),
    "New York", "Milan", "Munich", "Lyon", "Porto", "Seville", "Chicago", "Boston", "Sydney",
    "Toronto", "Osaka", "Mumbai", "Shanghai", "Hamburg", "Naples", "Glasgow", "Marseille",
    "San Francisco", "Los Angeles", "Barcelona", "Geneva", "Zurich", "Kyoto", "Istanbul",
)  # fmt: skip
_SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy", "warm", "cold")
_PEOPLE = ("Anna", "Ben", "Clara", "John", "Alice", "Bob", "Maria", "Peter", "Emma", "Tom", "Eve")
_PREFIXES = ("my_", "mcp_", "do_", "tool_", "math_", "local_", "demo_", "run_", "server_", "api_")
_SUFFIXES = ("_tool", "_v2", "_now", "_fn", "_service", "_2", "_api", "_x")
_OPERANDS = (
    ("a", "b"), ("a", "b"), ("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"),
    ("num1", "num2"), ("number1", "number2"), ("n", "m"), ("one", "two"), ("lhs", "rhs"),
)  # fmt: skip
_MINUS = ("What is {a} minus {b}?", "{a}-{b}", "Subtract {b} from {a}.", "{a} - {b}")


@dataclass(frozen=True)
class Task:
    """One request that needs a tool: what is offered, asked, called, returned and answered."""

    schema: dict[str, Any]
    ask: str
    arguments: dict[str, Any]
    result: str
    answer: str

    @property
    def name(self) -> str:
        """The name of the tool."""
        return self.schema["function"]["name"]


def schema(
    random: Random, name: str, descriptions: tuple[str, ...], parameters: dict[str, str]
) -> dict[str, Any]:
    """Return an OpenAI function schema; `parameters` maps each parameter to its JSON type."""
    chance = random.random()
    if chance < 0.06:
        name = random.choice(_PREFIXES) + name
    elif chance < 0.12:
        name += random.choice(_SUFFIXES)
    elif chance < 0.16:
        name = f"{invented(random)}_{name}"
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    body = {"type": "object", "properties": properties, "required": list(parameters)}
    function: dict[str, Any] = {"name": name, "parameters": body}
    if random.random() < 0.85:
        function["description"] = random.choice(descriptions)
    return {"type": "function", "function": function}


def _numbers(random: Random) -> tuple[int, int]:
    if random.random() < 0.6:
        return training_pair(random)
    top = random.choice((999, 9999))
    return random.randint(0, top), random.randint(100, top)


def _reported(random: Random, value: object) -> str:
    forms = ("{v}", "{v}", "{v}", '{{"result": {v}}}', "Result: {v}", "The answer is {v}")
    return random.choice(forms).format(v=value)


def add_task(random: Random, pair: tuple[int, int] | None = None) -> Task:
    """Return an addition left to a tool with two number parameters."""
    a, b = pair or _numbers(random)
    left, right = random.choice(_OPERANDS)
    name = random.choice(
        ("add", "add", "add", "sum", "add_numbers", "plus", "calculate_sum", "adder", "addition",
         "sum_two", "calculator", "get_sum", "add_two_numbers")
    )  # fmt: skip
    descriptions = ("Add two numbers.", "Adds two integers", "Return the sum of two numbers.",
                    "Add a and b.", "Sum of two numbers", "Compute a sum")  # fmt: skip
    kind = random.choice(("integer", "number"))
    tool = schema(random, name, descriptions, {left: kind, right: kind})
    ask = random.choice(PLUS)
    if ask == "Please add {a} to {b}.":
        ask = PLUS[0]
    ask = _insisted(random, ask.format(a=a, b=b), tool)
    return Task(
        tool, ask, {left: a, right: b}, _reported(random, a + b), f"{a} plus {b} is {a + b}."
    )


def _insisted(random: Random, ask: str, tool: dict[str, Any]) -> str:
    if random.random() < 0.85:
        return ask
    name = tool["function"]["name"]
    return random.choice(
        (f"{ask} Use the tool.", f"Use the {name} tool: {ask}", f"Use {name}. {ask}",
         f"{ask} Please use {name}.", f"{ask} Use the {name} tool.")
    )  # fmt: skip


def _other_sum_task(random: Random) -> Task:
    a, b = _numbers(random)
    if random.random() < 0.5:
        a, b = max(a, b), min(a, b)
        names, word, value = ("subtract", "minus", "difference", "sub"), "minus", a - b
        asks, descriptions = _MINUS, ("Subtract two numbers.", "Return a minus b.")
    else:
        a, b = random.randint(0, 99), random.randint(0, 99)
        names, word, value = ("multiply", "times", "product", "mul"), "times", a * b
        asks, descriptions = TIMES, ("Multiply two numbers.", "Return the product of two numbers.")
    left, right = random.choice(_OPERANDS)
    tool = schema(random, random.choice(names), descriptions, {left: "number", right: "number"})
    ask = _insisted(random, random.choice(asks).format(a=a, b=b), tool)
    answer = f"{a} {word} {b} is {value}."
    return Task(tool, ask, {left: a, right: b}, _reported(random, value), answer)


def _expression_task(random: Random) -> Task:
    a, b = _numbers(random)
    symbol, word, value = random.choice((("+", "plus", a + b), ("*", "times", a * b)))
    parameter = random.choice(("expression", "expr", "formula"))
    descriptions = ("Evaluate an arithmetic expression.", "A calculator.", "Compute a formula")
    name = random.choice(("calculator", "calculate", "evaluate", "compute", "calc"))
    tool = schema(random, name, descriptions, {parameter: "string"})
    ask = random.choice(
        ("What is {a} {w} {b}?", "{a}{s}{b}", "{a} {s} {b}", "Calculate {a} {s} {b}.")
    )
    ask = _insisted(random, ask.format(a=a, b=b, s=symbol, w=word), tool)
    arguments = {parameter: f"{a} {symbol} {b}"}
    return Task(tool, ask, arguments, _reported(random, value), f"{a} {word} {b} is {value}.")


WEATHER = (
    "What is the weather in {x}?", "What's the weather like in {x}?", "How is the weather in {x}?",
    "Weather in {x}?", "Tell me the weather in {x}.", "Is it raining in {x}?",
    "What is the weather in {x} today?", "How warm is it in {x}?", "Is it sunny in {x}?",
    "Can you tell me the weather in {x}?", "What's the temperature in {x}?",
)  # fmt: skip


def _place(random: Random, family: str) -> str:
    if random.random() < 0.45:
        return invented(random).capitalize()
    while held_out(family, place := random.choice(CITIES)):
        pass
    return place


def weather_task(random: Random, city: str | None = None) -> Task:
    """Return a question for the weather in a city."""
    city = city or _place(random, "weather")
    parameter = random.choice(("city", "city", "location", "place", "town"))
    name = random.choice(("get_weather", "get_weather", "weather", "current_weather",
                          "fetch_weather", "get_current_weather", "forecast"))  # fmt: skip
    descriptions = ("Get the weather in a city.", "Current weather for a location",
                    "Get the current weather.", "Returns the weather of a place.")  # fmt: skip
    parameters, arguments = {parameter: "string"}, {parameter: city}
    ask = random.choice(WEATHER).format(x=city)
    if random.random() < 0.15:
        unit = random.choice(("celsius", "fahrenheit"))
        parameters["unit"], arguments["unit"] = "string", unit
        ask = random.choice(WEATHER[:2]).format(x=city)[:-1] + f" in {unit}?"
    tool = schema(random, name, descriptions, parameters)
    sky, degrees = random.choice(_SKIES), random.randint(-9, 39)
    if random.random() < 0.2:
        sky = invented(random)  # the answer has to be read, whatever it says
    form = random.randrange(5)
    spoken = f"{sky}, {degrees} degrees"
    if form == 0:
        result = json.dumps({"temperature": degrees, "condition": sky})
    elif form == 1:
        result = json.dumps({parameter: city, "weather": sky, "temperature": degrees})
    else:
        spoken = result = random.choice(
            (f"{sky}, {degrees} degrees", f"{degrees} degrees and {sky}", sky.capitalize(),
             f"{sky.capitalize()}, {degrees}C", f"{degrees} degrees", f"{sky} and {degrees} °C")
        )  # fmt: skip
    return Task(tool, ask, arguments, result, f"The weather in {city} is {spoken}.")


def _time_task(random: Random) -> Task:
    city = _place(random, "time")
    parameter = random.choice(("city", "location", "timezone", "place"))
    name = random.choice(("get_time", "current_time", "time", "get_current_time", "clock"))
    descriptions = ("Get the time in a city.", "Current local time", "Returns the time of a place.")
    tool = schema(random, name, descriptions, {parameter: "string"})
    asks = ("What time is it in {x}?", "Tell me the time in {x}.", "What is the time in {x}?",
            "Time in {x}?", "How late is it in {x}?")  # fmt: skip
    now = f"{random.randint(0, 23):02d}:{random.randint(0, 59):02d}"
    result = random.choice((now, now, json.dumps({"time": now})))
    ask = random.choice(asks).format(x=city)
    return Task(tool, ask, {parameter: city}, result, f"It is {now} in {city}.")


def _search_task(random: Random) -> Task:
    topic = phrase(random)
    parameter = random.choice(("query", "query", "q", "text", "topic", "keywords"))
    name = random.choice(("search", "web_search", "search_web", "lookup", "find", "search_docs"))
    descriptions = ("Search the web.", "Search for a text", "Find pages about a topic.")
    tool = schema(random, name, descriptions, {parameter: "string"})
    asks = ("Search for {x}.", "Look up {x}.", "Find something about {x}.",
            "Search the web for {x}.", "Please search for {x}.", "Can you look up {x}?",
            "Search: {x}")  # fmt: skip
    found = f"The {random.choice(NOUNS)} of the {random.choice(NOUNS)} is {phrase(random, 2)}."
    ask = random.choice(asks).format(x=topic)
    return Task(tool, ask, {parameter: topic}, found, f"I found this: {found}")


def _text_task(random: Random) -> Task:
    text = phrase(random)
    verb, result = random.choice(
        (("echo", text), ("repeat", text), ("upper", text.upper()), ("reverse", text[::-1]),
         ("shout", text.upper() + "!"), ("count_letters", str(len(text))))
    )  # fmt: skip
    parameter = random.choice(("text", "message", "value", "input", "string"))
    tool = schema(random, verb, (f"{verb} a text.", "Process a text."), {parameter: "string"})
    name = tool["function"]["name"]
    asks = (f"Use the {name} tool on {text}.", f"Call {name} with {text}.", f"{verb}: {text}",
            f"Use {name} with the text {text}.", f'Use {name} for "{text}".')  # fmt: skip
    return Task(tool, random.choice(asks), {parameter: text}, result, f"The result is {result}.")


def _record_task(random: Random) -> Task:
    person, minutes = random.choice(_PEOPLE), random.randint(1, 99)
    if random.random() < 0.4:
        person = invented(random).capitalize()
    symbol = "".join(random.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", random.randint(2, 4)))
    text, path = (
        phrase(random, 3),
        f"{random.choice(NOUNS)}.{random.choice(('txt', 'md', 'csv'))}",
    )
    kind = random.randrange(8)
    result = random.choice(("ok", "done", "sent", "success", str(random.randint(1, 999))))
    names: tuple[str, ...]
    if kind == 0:
        names, parameters = ("set_timer", "timer", "start_timer"), {"minutes": minutes}
        asks, note = (f"Set a timer for {minutes} minutes.",), "Set a timer."
    elif kind == 1:
        names, parameters = ("send_message", "message"), {"to": person, "text": text}
        asks, note = (f"Send {person} the message {text}.",), "Send a message to a person."
    elif kind == 2:
        names = ("get_stock_price", "stock_price")
        parameters = {random.choice(("symbol", "ticker")): symbol}
        asks = (f"What is the stock price of {symbol}?", f"Price of {symbol}?")
        note = "Price of a stock."
    elif kind == 3:
        names, parameters = ("read_file", "open_file"), {random.choice(("path", "file")): path}
        asks, note = (f"Read the file {path}.", f"What is in {path}?"), "Read a file."
    elif kind == 4:
        names, parameters = ("get_phone_number", "phone"), {"name": person}
        asks, note = (f"What is the phone number of {person}?",), "Find the number of a person."
    elif kind == 5:
        names, parameters = ("get_date", "today", "get_today"), {}
        asks, note = (
            ("What is the date?", "Which day is today?", "What day is it?"),
            "Today's date.",
        )
        result = f"{random.randint(2020, 2030)}-{random.randint(1, 12):02d}-{minutes % 28 + 1:02d}"
    elif kind == 6:
        names, parameters = ("roll_dice", "dice"), {"sides": minutes}
        asks, note = (f"Roll a dice with {minutes} sides.",), "Roll a dice."
    else:
        language = random.choice(("French", "German", "Spanish", "Italian"))
        names, parameters = ("translate",), {"text": text, "language": language}
        asks, note = (f"Translate {text} to {language}.",), "Translate a text."
        result = phrase(random, 3)
    kinds = {key: "integer" if isinstance(v, int) else "string" for key, v in parameters.items()}
    tool = schema(random, random.choice(names), (note, note[:-1].lower()), kinds)
    ask = _insisted(random, random.choice(asks), tool)
    return Task(tool, ask, parameters, result, f"The result is {result}.")


_FAMILIES: tuple[tuple[Callable[[Random], Task], int], ...] = (
    (add_task, 6), (_other_sum_task, 2), (_expression_task, 2), (weather_task, 5), (_time_task, 2),
    (_search_task, 3), (_text_task, 2), (_record_task, 4),
)  # fmt: skip
_WEIGHTED = [family for family, weight in _FAMILIES for _ in range(weight)]


def offered(random: Random, tool: dict[str, Any], family: object) -> list[dict[str, Any]]:
    """Return `tool` among up to three tools of other families, shuffled."""
    arithmetic = (add_task, _other_sum_task, _expression_task)
    others = [other for other, _ in _FAMILIES if other is not family]
    if family in arithmetic:
        # A second calculator would be just as right: only named opposites may stand beside one.
        allowed = (add_task, _other_sum_task) if family is not _expression_task else ()
        others = [other for other in others if other not in arithmetic or other in allowed]
    tools = [tool]
    for other in random.sample(others, random.choice((0, 0, 1, 1, 2, 3))):
        extra = other(random).schema
        name = extra["function"]["name"]
        if name not in [t["function"]["name"] for t in tools] and "calculator" not in name:
            tools.append(extra)
    random.shuffle(tools)
    return tools


def tool_call(task: Task) -> dict[str, Any]:
    """Return the call of a task as it stands in an assistant message."""
    return {"type": "function", "function": {"name": task.name, "arguments": task.arguments}}


def tool_messages(random: Random, task: Task) -> list[dict[str, Any]]:
    """Return request, call, result and answer; one time in fifteen the tool fails."""
    result, answer = task.result, task.answer
    if random.random() < 0.07:
        cause = random.choice(
            ("not found", "timeout", "no connection", "not allowed", phrase(random))
        )
        result, answer = f"Error: {cause}", f"Sorry, the tool failed: {cause}."
    return [
        {"role": "user", "content": task.ask},
        {"role": "assistant", "content": "", "tool_calls": [tool_call(task)]},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": answer},
    ]


def tool_dialogue(random: Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the tools offered and the messages of a dialogue of the training set."""
    family = random.choice(_WEIGHTED)
    task = family(random)
    tools = offered(random, task.schema, family)
    chance = random.random()
    if chance < 0.03:  # a sum, but no calculator among the tools
        return [weather_task(random).schema], plain_messages(plus_turn(random))
    if chance < 0.2:  # tools are there, but this needs none
        turn = random.choice((talk_turn, talk_turn, everyday_turn, everyday_turn, capital_turn))
        return tools, plain_messages(turn(random))
    messages = tool_messages(random, task)
    if chance < 0.28 and len(tools) > 1:  # two calls at once
        other_family = random.choice((weather_task, _time_task, _search_task))
        other = other_family(random)
        if family is not other_family:
            tools = [task.schema, other.schema]
            random.shuffle(tools)
            both = f"{task.ask} {other.ask}"
            messages = [
                {"role": "user", "content": both},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [tool_call(task), tool_call(other)],
                },
                {"role": "tool", "content": task.result},
                {"role": "tool", "content": other.result},
                {"role": "assistant", "content": f"{task.answer} {other.answer}"},
            ]
    elif chance < 0.42:
        messages += plain_messages(talk_turn(random))
    return tools, messages


def plain_messages(turn: tuple[str, str]) -> list[dict[str, Any]]:
    """Return a question and its answer as messages."""
    return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
