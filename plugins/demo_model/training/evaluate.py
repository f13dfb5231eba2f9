"""Greedy accuracy of the demo model on held-out examples, by transformers."""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from capitals import held_out_capitals
from holdout import held_out, sum_held_out
from stories import held_out_stories
from sums import held_out_differences, held_out_sums
from tools import CITIES, Task, add_task, offered, tool_call, weather_task
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).parent.parent / "src" / "tramontane_demo_model" / "model"
Messages = list[dict[str, Any]]
Prompt = tuple[Messages, list[dict[str, Any]] | None]
CHAT = (
    "Hello!", "How are you?", "Who are you?", "Tell me a joke.", "Thank you!", "What can you do?",
    "What is the opposite of hot?", "What comes after Tuesday?",
    "How many legs does a spider have?",
    "Count to ten.", "hello my friend", "What is 7 times 8?", "Explain gravity.",
    "Tell me a story about a fox.",
)  # fmt: skip


class Model:
    """The model folder, answering greedily in batches."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "left"
        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answers(self, prompts: Sequence[Prompt], max_new_tokens: int = 64) -> list[str]:
        """Return the text the assistant adds to each prompt."""
        texts = [
            self.tokenizer.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, tokenize=False
            )
            for messages, tools in prompts
        ]
        answers: list[str] = []
        for start in range(0, len(texts), 64):
            batch = self.tokenizer(
                texts[start : start + 64],
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
                return_token_type_ids=False,
            )
            with torch.inference_mode():
                output = self.network.generate(
                    **batch, max_new_tokens=max_new_tokens, do_sample=False
                )
            new = output[:, batch["input_ids"].shape[1] :]
            answers += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers


def parsed_calls(text: str) -> list[dict[str, Any]]:
    """Return the tool calls of an answer; one that is not JSON reads as an empty one."""
    calls = []
    for body in re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL):
        try:
            calls.append(json.loads(body))
        except json.JSONDecodeError:
            calls.append({})
    return calls


def held_out_tasks(count: int, seed: int = 5) -> list[tuple[Task, list[dict[str, Any]]]]:
    """Return additions of held-out pairs and weather of held-out cities, with tools offered."""
    random = Random(seed)
    pairs = [(a, b) for a in range(100) for b in range(100) if sum_held_out(a, b)]
    cities = [city for city in CITIES if held_out("weather", city)]
    tasks = []
    for idx in range(count):
        if idx % 2:
            task, family = weather_task(random, random.choice(cities)), weather_task
        else:
            task, family = add_task(random, random.choice(pairs)), add_task
        tasks.append((task, offered(random, task.schema, family)))
    return tasks


def _asked(ask: str) -> Prompt:
    return [{"role": "user", "content": ask}], None


def measure(model: Model, limit: int) -> list[tuple[str, int, int]]:
    """Return `(kind, right, asked)` for every kind of example."""
    rows = []
    plain: tuple[tuple[str, Callable[[], list[tuple[str, str]]]], ...] = (
        ("sums", held_out_sums),
        ("subtractions", held_out_differences),
        ("capitals", held_out_capitals),
    )
    for kind, examples in plain:
        pairs = examples()
        Random(1).shuffle(pairs)
        pairs = pairs[:limit]
        answers = model.answers([_asked(ask) for ask, _ in pairs])
        wrong = [
            (ask, got) for (ask, right), got in zip(pairs, answers, strict=True) if got != right
        ]
        print(f"{kind}: wrong answers such as {wrong[:3]}")
        rows.append((kind, len(pairs) - len(wrong), len(pairs)))

    tasks = held_out_tasks(min(limit, 200))
    prompts: list[Prompt] = [([{"role": "user", "content": t.ask}], tools) for t, tools in tasks]
    answers = model.answers(prompts, 96)
    for name, start in (("tool calls: addition", 0), ("tool calls: weather", 1)):
        part = list(zip(tasks, answers, strict=True))[start::2]
        wrong = [
            (task.name, task.arguments, text)
            for (task, _), text in part
            if parsed_calls(text) != [{"name": task.name, "arguments": task.arguments}]
        ]
        print(f"{name}: wrong answers such as {wrong[:3]}")
        rows.append((name, len(part) - len(wrong), len(part)))

    prompts = [
        (
            [
                {"role": "user", "content": task.ask},
                {"role": "assistant", "content": "", "tool_calls": [tool_call(task)]},
                {"role": "tool", "content": task.result},
            ],
            tools,
        )
        for task, tools in tasks
    ]
    wrong = [
        (task.result, task.answer, text)
        for (task, _), text in zip(tasks, model.answers(prompts), strict=True)
        if text != task.answer
    ]
    print(f"tool results: wrong answers such as {wrong[:3]}")
    rows.append(("tool results used", len(tasks) - len(wrong), len(tasks)))

    stories = held_out_stories()[: min(limit, 40)]
    answers = model.answers([_asked(ask) for ask, _, _ in stories], 300)
    right = sum(
        hero in text and place in text and 60 <= len(text.split()) <= 160
        for (_, hero, place), text in zip(stories, answers, strict=True)
    )
    rows.append(("stories on their topic", right, len(stories)))
    return rows


def main() -> None:
    """Print a table of the scores and some conversation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--limit", type=int, default=500, help="most examples of a kind")
    arguments = parser.parse_args()
    model = Model(arguments.model)
    rows = measure(model, arguments.limit)
    for ask, answer in zip(CHAT, model.answers([_asked(ask) for ask in CHAT], 300), strict=True):
        print(f"> {ask}\n{answer}")
    print("| Held-out examples | Right | Asked | Share |\n|---|---|---|---|")
    for kind, right, asked in rows:
        print(f"| {kind} | {right} | {asked} | {right / asked:.1%} |")


if __name__ == "__main__":
    main()
