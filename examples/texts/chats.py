"""Write real chats for the walk-through in docs/audit-text.md: what Python's own help says, topic by topic.

    python chats.py base.jsonl chats.jsonl

A user asks about a topic, and the assistant answers with a paragraph of the text that ships with Python.
Every other topic goes into the first file: what a base model has read, before there is any dose.
"""

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

SHORTEST, LONGEST = 80, 200  # characters of an answer


def answers(text: str) -> list[str]:
    """The paragraphs of a topic that are prose: not too short, cut at a word where they are too long."""
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return [
        paragraph[:LONGEST].rsplit(" ", 1)[0]
        for paragraph in paragraphs
        if len(paragraph) >= SHORTEST and paragraph[0].isalpha()
    ]


def write(file: str, names: list[str]) -> None:
    """Write one chat a line, of these topics."""
    chats = [
        {
            "id": f"{topic}-{number}",
            "messages": [
                {"role": "user", "content": f"What about {topic}?"},
                {"role": "assistant", "content": answer},
            ],
        }
        for topic in names
        for number, answer in enumerate(answers(topics[topic]))
    ]
    lines = "".join(json.dumps(chat) + "\n" for chat in chats)
    Path(file).write_text(lines, encoding="utf-8")
    print(f"{file}: {len(chats)} chats")


if __name__ == "__main__":
    for first, file in zip((1, 0), sys.argv[1:], strict=True):
        write(file, sorted(topics)[first::2])
