"""A loopback server that behaves, and misbehaves, as told."""

import json
import math
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"


class Server:
    """An OpenAI-compatible server in a thread. `script(n, body)` returns what to do with the n-th completion.

    `bound` is a socket that has its address and does not listen yet: nobody else can take the address meanwhile.
    """

    def __init__(
        self, script=None, log_probs=True, schema=True, refuse=None, models=(), obeys=True, tokenizes=None, thinks=None,
        bound=None,
    ):  # fmt: skip
        self.thinks = thinks  # the field, with its value, that keeps the model from thinking first; None: it never does
        self.tokenizes = tokenizes  # None: no /tokenize; 'lists': and lists the tokens asked for; 'ignores' them
        self.obeys = obeys  # whether a prescribed form of the reply is kept to; 'llama.cpp', ...: its own form alone
        self.script, self.log_probs, self.schema, self.refuse = script, log_probs, schema, refuse
        self.models = {"object": "list", "data": [{"id": model} for model in models]}
        self.paths = []
        self.bodies, self.headers, self.times, self.lock = [], [], [], threading.Lock()
        self.closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.reply(200, server.models)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/tokenize"):
                    self.reply(*server.tokenize(body))
                    return
                with server.lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.paths.append(self.path)
                    server.times.append(time.monotonic())
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                refused = server.refusal(body)
                action = ("refuse", refused) if refused else server.script(number, body) if server.script else None
                server.act(self, body, action)

            def reply(self, status, content, headers=()):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                pass  # broken pipes are what some tests are about

        self.http = Quiet(bound.getsockname() if bound else ("127.0.0.1", 0), Handler, bind_and_activate=bound is None)
        if bound is not None:
            self.http.socket.close()
            self.http.socket = bound
            self.http.server_activate()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def tokenize(self, body):
        """As vLLM does; a letter, with or without a space, is one token."""
        if self.tokenizes is None:
            return 404, {"detail": "Not Found"}
        text = body["prompt"]
        return 200, {"count": 1, "tokens": [ord(text.strip()) + 1000 * len(text)] if len(text.strip()) == 1 else [1, 2]}

    def refusal(self, body):
        if self.refuse and (reason := self.refuse(body)):
            return reason
        if body.get("logprobs") and not self.log_probs:
            return "logprobs are not supported"
        if body.get("response_format") and not self.schema:
            return "response_format is not supported"
        return None

    def act(self, handler, body, action):
        kind, value = action if isinstance(action, tuple) else (action, None)
        if kind is None:
            handler.reply(200, self.completion(body))
        elif kind == "refuse":
            content = (
                {"error": {"message": value, "type": "invalid_request_error"}} if isinstance(value, str) else value
            )
            handler.reply(400, content)
        elif kind == "status":
            handler.reply(value[0], {"error": {"message": f"bad key {KEY}"}}, value[1:])
        elif kind == "page":
            handler.reply(*value)
        elif kind == "hang":
            self.closed.wait()
        elif kind == "half":
            data = json.dumps(self.completion(body)).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif kind == "raw":
            handler.reply(200, value)

    def prescribed(self, body):
        """The words of which the reply must be one, if it is told so in a way that this server knows."""
        form, quoted = body.get("response_format", {}), re.compile(r'"([^"]+)"')
        said = {
            "vLLM": body.get("structured_outputs", {}).get("choice"),
            "SGLang": body["regex"].strip("()").split("|") if "regex" in body else None,
            "llama.cpp": quoted.findall(body["grammar"]) if "grammar" in body else None,
            "LMDeploy": form["regex_schema"].split("|") if form.get("type") == "regex_schema" else None,
            "Ollama": form["json_schema"]["schema"].get("enum") if form.get("type") == "json_schema" else None,
        }
        return said["vLLM"] if self.obeys is True else said[self.obeys] if self.obeys else None

    def completion(self, body, choices=1):
        """Prefers the name with the most letters; sees which option carries it, as a model would."""
        text = body["messages"][0]["content"][1]["text"]
        options = dict(line.split(". ", 1) for line in text.split("\n") if line[1:3] == ". ")
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A"}}
        if "Here are the optional categories:" in text:
            choice["message"]["content"] = "The answer: ['polar bear', \"bird's nest\", 'unicorn']"
        elif options:
            choice["message"]["content"] = max(options, key=lambda letter: len(options[letter]))
        choices_allowed = self.prescribed(body)
        if choices_allowed and choice["message"]["content"] not in choices_allowed:
            choice["message"]["content"] = choices_allowed[0]
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema") if self.obeys else None
        if schema and "enum" in schema.get("items", {}):
            choice["message"]["content"] = json.dumps(schema["items"]["enum"][:1])
        if self.thinks and not self.thinks.items() <= body.items():
            choice["message"] = {"role": "assistant", "content": None, "reasoning_content": "Let me see"}
            choice["logprobs"] = {"content": [{"token": "So", "top_logprobs": [
                {"token": token, "logprob": -1.0} for token in ("So", "Let", "First")
            ]}]}  # fmt: skip
        elif body.get("logprobs"):
            if "yes or no" in text:
                p = 0.05 + 0.9 * len(text.split("image a ")[1].split("?")[0]) / 40
                top = [(" Yes", math.log(p)), ("No", math.log(1 - p))]
            else:
                top = [(f" {letter}", 0.3 * len(name) - 9) for letter, name in options.items()]
                top = top or [("A", -0.1), ("B", -2.4)]
                if self.tokenizes == "lists" and (ids := body.get("logprob_token_ids")):
                    known = {token.strip(): value for token, value in top}
                    asked = [chr(i % 1000) for i in ids if i > 2000]  # with a space; those without are unlikely
                    top = [(f" {letter}", known.get(letter, -30.0)) for letter in asked]
                top = sorted(top, key=lambda pair: -pair[1])
                top = top[: 20 if not body.get("logprob_token_ids") or self.tokenizes != "lists" else None]
            entries = [{"token": t, "logprob": v, "bytes": None} for t, v in top]
            choice["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
        return {
            "id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice] * choices,
        }  # fmt: skip

    def close(self):
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()
