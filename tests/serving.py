"""A completions endpoint that really serves a model over loopback, with faults on request."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Fault = Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool]  # whether it has answered


class Server(ThreadingHTTPServer):
    """A server of one model.

    Attributes:
        url: the address up to /v1.
        asked: the requests' contents, with their headers.
        fault: what is done before a request is answered.
        dialect: "echo", or "prompt_logprobs" as of a server that has no echo.
    """

    def __init__(self, causal: Any, fast: Any, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.causal, self.fast, self.name = causal, fast, name
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.asked: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.fault: Fault = lambda handler, content: False
        self.dialect, self.context = "echo", causal.config.n_positions

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a client that is gone."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((content, dict(self.headers)))
        if self.server.fault(self, content):
            return
        if content["model"] != self.server.name:
            reply(self, 404, {"error": {"message": f"no model {content['model']!r} here"}})
            return
        tokens = len(self.server.fast(content.get("prompt", ""))["input_ids"])
        if tokens > self.server.context:
            reply(self, 400, {"error": {"message": f"at most {self.server.context} tokens"}})
        elif self.path == "/v1/completions":
            reply(self, 200, self.completion(content))
        elif self.path == "/v1/chat/completions" and self.server.fast.chat_template:
            reply(self, 200, self.chat(content))
        else:
            reply(self, 404, {"detail": "Not Found"})

    def chat(self, content: dict[str, Any]) -> dict[str, Any]:
        prompt = self.server.fast.apply_chat_template(
            content["messages"],
            tokenize=False,
            add_generation_prompt=content["add_generation_prompt"],
        )
        answer = self.completion(content | {"prompt": prompt})
        return answer | {"prompt_logprobs": answer["choices"][0].pop("prompt_logprobs", None)}

    @torch.no_grad()
    def completion(self, content: dict[str, Any]) -> dict[str, Any]:
        ids = self.server.fast(content["prompt"])["input_ids"]
        assert len(ids) <= self.server.context
        tokens = [self.server.fast.decode([token]) for token in ids]
        logits = self.server.causal(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        values = [None, *(float(logits[i - 1, ids[i]]) for i in range(1, len(ids)))]
        choice: dict[str, Any] = {"index": 0, "text": content["prompt"], "logprobs": None}
        if self.server.dialect == "echo" and content.get("echo"):
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": values}
        if self.server.dialect == "prompt_logprobs" and "prompt_logprobs" in content:
            best = logits.max(-1)
            choice["prompt_logprobs"] = [None] + [
                {str(ids[i]): {"logprob": values[i]}}
                | {str(int(best.indices[i - 1])): {"logprob": float(best.values[i - 1])}}
                for i in range(1, len(ids))
            ]
        return {"model": self.server.name, "choices": [choice]}

    def log_message(self, *_: Any) -> None:
        pass


def reply(handler: BaseHTTPRequestHandler, status: int, content: Any, **headers: str) -> bool:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True


@contextmanager
def serving(causal: Any, fast: Any, name: str = "tiny") -> Iterator[Server]:
    """Serve a model on a free port inside."""
    server = Server(causal, fast, name)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def slowly(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> bool:
    time.sleep(0.3)
    return False


def drop_by_drop(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> bool:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)
    return True
