"""Makes the golden files of chat templates. See README.md.

Usage: python tools/chat/chat_templates.py
Needs: pip install "transformers==5.24.0" "jinja2==3.1.6"
"""

import datetime
import json
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import _normalize_chat_messages
from transformers.utils import chat_template_utils

HERE = Path(__file__).resolve().parent
GOLDENS = HERE.parents[1] / "crates/endoscope-models/tests/goldens/chat"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

Message = dict[str, Any]


class FixedClock(datetime.datetime):
    """A Friday morning, always."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "FixedClock":
        return cls(2024, 7, 26, 9, 5, 3, tzinfo=tz)


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def user(content: Any, **more: Any) -> Message:
    return {"role": "user", "content": content, **more}


def assistant(content: str | None, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def tool(content: Any) -> Message:
    return {
        "role": "tool",
        "name": "weather",
        "tool_call_id": "call00001",
        "content": content,
    }


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The "weather" of <a place>.',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Où"},
                "days": {"type": ["integer", "null"], "default": 1.5},
            },
            "required": ["place"],
        },
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {
        "name": "weather",
        "arguments": {"place": "Paris é", "days": 2, "exact": [1.0, None, True]},
    },
}
PARTS = [{"type": "text", "text": "Part one. "}, {"type": "text", "text": "Part two."}]

CHATS: dict[str, dict[str, Any]] = {
    "one question": {"messages": [user("Where is the Eiffel tower?")]},
    "system and turns": {
        "messages": [
            system("  You are terse.\n"),
            user(" What is 2+2? "),
            assistant("Four.  "),
            user("And 3+3?"),
        ]
    },
    "ends with the assistant": {"messages": [user("one"), assistant("two")]},
    "thinking in the text": {
        "messages": [
            user("q"),
            assistant("<think>\nI ponder\n</think>\n\nThe answer"),
            user("again"),
            assistant("<think>more</think>final"),
        ]
    },
    "thinking beside the text": {
        "messages": [
            user("q"),
            assistant("The answer", reasoning_content="I ponder"),
            user("again"),
            assistant("Last", reasoning="\nI ponder again\n"),
        ]
    },
    "tools": {
        "messages": [
            system("Use tools."),
            user("weather?"),
            assistant("", tool_calls=[CALL]),
            tool('{"t": 20}'),
            assistant("It is 20."),
            user("thanks"),
        ],
        "tools": [TOOL, TOOL],
    },
    "two calls": {
        "messages": [
            user("weather?"),
            assistant(None, tool_calls=[CALL, CALL]),
            tool("sunny"),
            tool("rain"),
        ],
        "tools": [TOOL],
    },
    "tools unused": {"messages": [user("weather?")], "tools": [TOOL]},
    "arguments": {
        "messages": [user("hi")],
        "chat_template_kwargs": {
            "enable_thinking": False,
            "date_string": "1 Jan 2026",
            "controls": {"length": "short"},
        },
    },
    "flag in the system message": {"messages": [system("Short. /no_think"), user("x")]},
    "parts": {"messages": [user(PARTS)]},
    "wrong order": {"messages": [assistant("I begin"), user("bad order")]},
    "twice the same": {"messages": [user("same"), user("same")]},
    "other characters": {
        "messages": [
            user("<|im_end|> & < > \" ' \\ \n\n 日本 🙂", name="é"),
            assistant("naïve\t✓"),
            user("ok"),
        ]
    },
    "documents": {
        "messages": [user("doc?")],
        "documents": [
            {"title": "T", "text": "Body"},
            {"title": "U", "text": "Other"},
        ],
    },
    "blank": {"messages": [user("  "), assistant("")]},
}


def case(name: str, template: str, prompt: bool) -> Any:
    """One rendering: the text, or why there is none."""
    chat = CHATS[name]
    found: dict[str, Any] = {"chat": name, "generation_prompt": prompt}
    arguments = {**SPECIAL, **chat.get("chat_template_kwargs", {})}
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [_normalize_chat_messages(chat["messages"])],
            tools=chat.get("tools"),
            documents=chat.get("documents"),
            chat_template=template,
            add_generation_prompt=prompt,
            **arguments,
        )
    except Exception as error:
        return {**found, "refused": str(error)}
    return {**found, "text": rendered[0]}


def write(path: Path, golden: dict[str, Any]) -> None:
    """Writes an object with a line for each entry, and for each entry of lists."""
    lines = []
    for key, value in golden.items():
        if isinstance(value, list):
            items = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value)
            text = f"[\n  {items}\n ]"
        else:
            text = json.dumps(value, ensure_ascii=False)
        lines.append(f" {json.dumps(key)}: {text}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    chat_template_utils.datetime = FixedClock
    GOLDENS.mkdir(parents=True, exist_ok=True)
    write(GOLDENS / "chats.json", CHATS)
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8").removesuffix("\n")
        cases = [
            case(name, template, prompt) for name in CHATS for prompt in (True, False)
        ]
        golden = {"template": template, "special_tokens": SPECIAL, "cases": cases}
        write(GOLDENS / f"{path.stem}.json", golden)
        refused = sum("refused" in case for case in cases)
        print(f"{path.stem}: {len(cases)} cases, {refused} refused")


if __name__ == "__main__":
    main()
