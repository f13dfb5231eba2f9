"""`WebSearch`: two tools for requests with ``web_search_options``, over a search of the user's.

Nothing here touches the network: pages come from the ``search_callback``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from tramontane.api.config import SearchResult, WebSearchOptions
from tramontane.api.enums import SearchContextSize
from tramontane.hooks.specs import ToolSource
from tramontane.tools.registry import ToolError

SEARCH = "search_the_web"
EXTRACT = "website_content_extractor"

RESULT_TOKENS = {
    SearchContextSize.Low: 4096,
    SearchContextSize.Medium: 8192,
    SearchContextSize.High: 16384,
}
"""What the results of one search may take of the prompt."""

SEARCH_DESCRIPTION = (
    "Search the web, for what is recent or what you are not sure of. Answer from the results, and "
    "name the pages that you have used."
)
EXTRACT_DESCRIPTION = (
    f"Read a whole page that {SEARCH} has found, where the part it showed does not suffice."
)

PASSAGE = re.compile(r".{1,600}(?:\s+|$)|.{600}", re.DOTALL)
"""Pieces of a page, which are ranked each for itself."""

GAP = "\n[...]\n"
"""Between passages that do not follow each other."""

WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|(?:(?![぀-ヿ㐀-鿿가-힯])\w)+")
"""A term: a word, or one character of a script that does not part its words."""

K1, B = 1.2, 0.75


@frozen
class WebSearch:
    """The web search of a runner.

    Args:
        callback: ``callback(query)`` gives pages, dicts of ``title``, ``description``, ``url`` and
            ``content``; it may be a coroutine function.
    """

    callback: Callable[[str], Any]

    def source(
        self,
        options: WebSearchOptions,
        count_tokens: Callable[[str], int],
        context_len: int | None = None,
    ) -> ToolSource:
        """The tools of one request.

        Args:
            count_tokens: length of a text for the model.
            context_len: tokens the model takes; results fill at most half of them.
        """
        room = RESULT_TOKENS[options.search_context_size or SearchContextSize.Medium]
        if context_len is not None:
            room = min(room, context_len // 2)
        search = _Search(self.callback, count_tokens, room)
        return ToolSource(name="web search", tools=_schemas(options), call=search.call)


@frozen
class Page:
    """One result."""

    title: str
    description: str
    url: str
    content: str

    def shown(self, content: str) -> dict[str, str]:
        """As the model is told of it, with this much of its content."""
        return {
            "title": self.title,
            "description": self.description,
            "url": self.url,
            "content": content,
        }


@frozen
class _Search:
    """What the tools do, and the pages that this request has found."""

    callback: Callable[[str], Any]
    count_tokens: Callable[[str], int]
    room: int
    pages: dict[str, Page] = field(factory=dict)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        key = "query" if name == SEARCH else "url"
        wanted = arguments.get(key)
        if not isinstance(wanted, str) or not wanted.strip():
            raise ToolError(f"{name} needs {key}, a text")
        return self.search(wanted) if name == SEARCH else self.extract(wanted)

    def search(self, query: str) -> str:
        """Results as JSON, the most relevant first, cut to the room there is."""
        found = self.callback(query)
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found))
        pages = _pages(found)
        self.pages.update({page.url: page for page in pages})
        return json.dumps({"output": self._fitted(query, pages)}, ensure_ascii=False)

    def extract(self, url: str) -> str:
        """A page's text, as much as there is room for."""
        page = self.pages.get(url)
        if page is None:
            there = ", ".join(self.pages) or f"none yet: call {SEARCH} first"
            raise ToolError(f"{url} is none of the pages found; there are {there}")
        text, left = [], self.room
        for passage in PASSAGE.findall(page.content):
            left -= self.count_tokens(passage)
            if left < 0:
                break
            text.append(passage)
        return "".join(text) or page.description

    def _fitted(self, query: str, pages: Sequence[Page]) -> list[dict[str, str]]:
        """The passages that suit the query best, as many as fit, each with its page."""
        passages = [
            (page, place, passage)
            for page in pages
            for place, passage in enumerate(PASSAGE.findall(page.content) or [""])
        ]
        scores = bm25(query, [f"{p.title} {p.description} {text}" for p, _, text in passages])
        ranked = sorted(range(len(passages)), key=lambda i: -scores[i])
        shown: dict[int, dict[int, str]] = {}
        by_id = {id(page): page for page in pages}
        left = self.room
        for i in ranked:
            page, place, text = passages[i]
            cost = self.count_tokens(json.dumps(text, ensure_ascii=False))
            if id(page) not in shown:
                cost += self.count_tokens(json.dumps(page.shown(""), ensure_ascii=False))
            if cost > left:
                break
            left -= cost
            shown.setdefault(id(page), {})[place] = text
        if pages and not shown:
            raise ToolError(f"no result fits into the {self.room} tokens that there are for them")
        return [by_id[key].shown(_joined(texts)) for key, texts in shown.items()]


def bm25(query: str, texts: Sequence[str]) -> list[float]:
    """How well each text suits the query: Okapi BM25 (Robertson and Zaragoza, "The Probabilistic
    Relevance Framework", 2009, section 3.3) with an idf that is never negative."""
    counts = [Counter(_terms(text)) for text in texts]
    lengths = [count.total() for count in counts]
    mean = sum(lengths) / max(len(texts), 1) or 1.0
    scores = [0.0] * len(texts)
    for term in dict.fromkeys(_terms(query)):
        holding = sum(term in count for count in counts)
        idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for i, count in enumerate(counts):
            times = count[term]
            scores[i] += idf * times * (K1 + 1) / (times + K1 * (1 - B + B * lengths[i] / mean))
    return scores


def _terms(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _joined(passages: Mapping[int, str]) -> str:
    """Passages by their place in the page, in its order."""
    text, following = "", 0
    for place in sorted(passages):
        text += ("" if place == following else GAP) + passages[place]
        following = place + 1
    return text.strip()


def _pages(found: Any) -> list[Page]:
    """What the callback gave.

    Raises:
        ToolError: it is no list of results.
    """
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)):
        raise ToolError(f"search_callback must give a list of results, not {type(found).__name__}")
    pages = []
    for index, result in enumerate(found):
        if not isinstance(result, Mapping):
            raise ToolError(f"search_callback: result {index} is no dict but {result!r:.80}")
        fields = {name: result.get(name) or "" for name in SearchResult.__annotations__}
        wrong = [name for name, value in fields.items() if not isinstance(value, str)]
        if wrong or not fields["url"]:
            raise ToolError(
                f"search_callback: {(wrong or ['url'])[0]} of result {index} must be a text"
            )
        pages.append(Page(**fields))
    return pages


async def _awaited(value: Any) -> Any:
    return await value


def _schemas(options: WebSearchOptions) -> dict[str, dict[str, Any]]:
    search = options.search_description or SEARCH_DESCRIPTION
    if options.user_location is not None:
        near = options.user_location.location
        search += (
            f" The user is near {near.city}, {near.region}, {near.country}; the time zone there "
            f"is {near.timezone}."
        )
    return {
        SEARCH: _schema(SEARCH, search, "query", "What to search for"),
        EXTRACT: _schema(
            EXTRACT, options.extract_description or EXTRACT_DESCRIPTION, "url", "URL of the page"
        ),
    }


def _schema(name: str, description: str, argument: str, meaning: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string", "description": meaning}},
        "required": [argument],
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}
