"""Web search with a scripted model and a scripted web: offered, ranked, cut, read, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tramontane.api import ChatCompletionRequest, WebSearchOptions
from tramontane.errors import UnsupportedError, ValidationError
from tramontane.settings import RunnerSettings
from tramontane.tools.loop import ToolStream
from tramontane.tools.registry import ToolRegistry
from tramontane.tools.search import EXTRACT, GAP, SEARCH, WebSearch, bm25
from tramontane_testkit.scripted import Script, call


def page(name: str, content: str, **fields: Any) -> dict[str, Any]:
    url = f"https://{name}.example"
    return {"title": name, "description": "", "url": url, "content": content, **fields}


WEB = [
    page("cooking", "Boil the water. Add salt. " * 60),
    page("winds", "The sirocco is hot. " + "Filler text here. " * 80 + "The tramontane is cold."),
    page("empty", "", description="All about the tramontane"),
]


def ask(
    script: Script,
    search: Callable[[str], Any],
    context_len: int | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Records of the calls that a script makes."""
    source = WebSearch(search).source(
        WebSearchOptions(**options), lambda text: len(text.split()), context_len
    )
    tools = ToolRegistry().joined(source)
    request = ChatCompletionRequest("What is a tramontane?")
    request.tool_schemas = tools.offered(request)
    response = ToolStream(request, script.start, tools, 8).collect()
    return [record.to_dict() for record in response.executed_tool_calls or ()]


def test_the_model_searches_reads_and_answers() -> None:
    asked: list[str] = []

    def search(query: str) -> list[dict[str, Any]]:
        asked.append(query)
        return WEB

    read = call(EXTRACT, url="https://winds.example")
    script = Script([call(SEARCH, query="tramontane wind"), read, "A cold wind."])
    found, whole = ask(script, search)
    assert asked == ["tramontane wind"]
    output = json.loads(found["result"])["output"]
    assert [result["title"] for result in output] == ["empty", "winds", "cooking"]
    assert all(set(result) == {"title", "description", "url", "content"} for result in output)
    assert output[1]["content"] == WEB[1]["content"]
    assert whole["result"] == WEB[1]["content"]
    assert script.results == [found["result"], whole["result"]]
    offered = script.requests[0].tool_schemas or []
    assert [tool["function"]["name"] for tool in offered] == [SEARCH, EXTRACT]


def test_results_are_cut_to_the_passages_that_suit_best() -> None:
    script = Script([call(SEARCH, query="tramontane"), "A wind."])
    (found,) = ask(script, lambda query: WEB, context_len=260)
    output = json.loads(found["result"])["output"]
    content = output[0]["content"]
    assert output[0]["title"] in ("winds", "empty")
    shown = "".join(result["content"] for result in output)
    assert "The tramontane is cold." in shown
    assert len(found["result"].split()) <= 130
    assert content.count("Filler") < 80


def test_a_gap_is_shown_between_passages() -> None:
    long = "a tramontane blows. " * 30 + "nothing at all. " * 120 + "a tramontane ends. " * 30
    script = Script([call(SEARCH, query="tramontane"), "Ok."])
    (found,) = ask(script, lambda query: [page("p", long)], context_len=420)
    (result,) = json.loads(found["result"])["output"]
    assert result["content"].startswith("a tramontane blows.")
    assert "a tramontane ends." in result["content"].partition(GAP)[2]


@pytest.mark.parametrize(("size", "tokens"), [("low", 4096), (None, 8192), ("high", 16384)])
def test_how_much_room_results_get(size: str | None, tokens: int) -> None:
    web = [page(str(i), "word " * 500) for i in range(60)]
    script = Script([call(SEARCH, query="word"), "Ok."])
    (found,) = ask(script, lambda query: web, search_context_size=size)
    assert tokens - 600 < len(found["result"].split()) <= tokens


def test_a_coroutine_may_search() -> None:
    async def search(query: str) -> list[dict[str, Any]]:
        return [page("async", query)]

    (found,) = ask(Script([call(SEARCH, query="x"), "Ok."]), search)
    assert json.loads(found["result"])["output"][0]["content"] == "x"


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (lambda query: 1 / 0, "ERROR: ZeroDivisionError"),
        (lambda query: "a text", "ERROR: search_callback must give a list"),
        (lambda query: ["a text"], "ERROR: search_callback: result 0 is no dict"),
        (lambda query: [page("a", "b", title=3)], "ERROR: search_callback: title of result 0"),
        (lambda query: [page("a", "b", url="")], "ERROR: search_callback: url of result 0"),
        (lambda query: [{"title": "a"}], "ERROR: search_callback: url of result 0"),
        (lambda query: [page("a", "word " * 300, title="t " * 99)], "ERROR: no result fits"),
        (lambda query: [], '{"output": []}'),
    ],
)
def test_whatever_the_callback_does_the_model_is_told(search: Any, told: str) -> None:
    script = Script([call(SEARCH, query="x"), "I see."])
    ask(script, search, context_len=100)
    assert script.results[0].startswith(told)


def test_calls_that_make_no_sense_are_told_why() -> None:
    turn = call(SEARCH) + call(SEARCH, query=" ") + call(EXTRACT, url="file:///etc/passwd")
    script = Script([turn, call(SEARCH, query="x"), call(EXTRACT, url="http://b"), "Sorry."])
    ask(script, lambda query: [page("a", "b")])
    first, second, third, _, last = script.results
    assert first == second == "ERROR: search_the_web needs query, a text"
    assert third.endswith("there are none yet: call search_the_web first")
    assert last == "ERROR: http://b is none of the pages found; there are https://a.example"


def test_descriptions_and_place_are_the_requests() -> None:
    place = {"city": "Nice", "country": "FR", "region": "PACA", "timezone": "Europe/Paris"}
    given = {
        "user_location": {"type": "approximate", "approximate": place},
        "search_description": "Look it up.",
        "extract_description": "Read it.",
    }
    options = ChatCompletionRequest("?", web_search_options=given).web_search_options
    assert options is not None
    tools = WebSearch(lambda query: []).source(options, len).tools
    assert tools[SEARCH]["function"]["description"].startswith("Look it up. The user is near Nice")
    assert tools[EXTRACT]["function"]["description"] == "Read it."


def test_bm25_is_that_of_the_formula() -> None:
    """Worked by hand for k1 1.2 and b 0.75: of two texts one holds the term, twice in four."""
    scores = bm25("wind", ["wind wind cold air", "hot air"])
    idf = 0.6931471805599453  # log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * 4 / 3)
    assert scores == pytest.approx([idf * 2 * 2.2 / (2 + norm), 0.0])
    assert bm25("東京 天気", ["京都の天気", "東京の天気", "大阪"])[1] > 0
    assert bm25("x", []) == []


def test_it_is_off_unless_switched_on_and_needs_a_callback() -> None:
    assert RunnerSettings().web_search() is None
    assert RunnerSettings(enable_search=True, search_callback=lambda query: []).web_search()
    with pytest.raises(UnsupportedError, match="search_callback"):
        RunnerSettings(enable_search=True)
    with pytest.raises(ValidationError, match="enable_search=True"):
        RunnerSettings(search_callback=lambda query: [])
    with pytest.raises(ValidationError, match="function of the query"):
        RunnerSettings(enable_search=True, search_callback="https://search.example")
