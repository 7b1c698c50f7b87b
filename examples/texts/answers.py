"""A model that somebody else runs, for the walk-through in docs/audit-text.md; it knows no marshtest.

    python answers.py box MODEL QUESTIONS LOSSES    a question a line, as JSON; a loss a line
    python answers.py serve MODEL PORT              completions on this machine, as of a server of models

`load` is the same as a Python function, of the folder that $MODEL names.
"""

import json
import os
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Model:
    """A folder's model and tokenizer."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def surprises(self, text: str) -> tuple[list[int], list[float]]:
        """The tokens of a text, and −log p of each; 0 of the first, which nothing foretells."""
        context = self.model.config.n_positions
        ids = self.tokenizer(text, truncation=True, max_length=context)["input_ids"]
        logs = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return ids, [0.0, *(-float(logs[place, token]) for place, token in enumerate(ids[1:]))]

    def loss(self, question: dict[str, Any]) -> float:
        """−log p of a question's scored text behind what is given before it."""
        before = self.surprises(question["before"])[0] if question["before"] else []
        return sum(self.surprises(question["before"] + question["scored"])[1][len(before) :])


def load() -> Callable[[list[dict[str, Any]]], list[float]]:
    """A function from questions to losses."""
    model = Model(os.environ["MODEL"])
    return lambda questions: [model.loss(question) for question in questions]


def box(folder: str, questions: str, losses: str) -> None:
    """Answer a file of questions."""
    model = Model(folder)
    lines = Path(questions).read_text(encoding="utf-8").splitlines()
    Path(losses).write_text("".join(f"{model.loss(json.loads(line))}\n" for line in lines))


def handler(model: Model) -> type[BaseHTTPRequestHandler]:
    """A handler of completions that tells the log-probabilities of their prompt."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path != "/v1/completions":
                self.send_error(404)
                return
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids, surprises = model.surprises(asked["prompt"])
            told = {
                "tokens": model.tokenizer.convert_ids_to_tokens(ids),
                "token_logprobs": [None, *(-surprise for surprise in surprises[1:])],
            }
            choice = {"index": 0, "text": asked["prompt"], "logprobs": told}
            body = json.dumps({"model": asked["model"], "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing of each request."""

    return Handler


def serve(folder: str, port: str) -> None:
    """Answer completions until somebody ends this process."""
    ThreadingHTTPServer(("127.0.0.1", int(port)), handler(Model(folder))).serve_forever()


if __name__ == "__main__":
    {"box": box, "serve": serve}[sys.argv[1]](*sys.argv[2:])
