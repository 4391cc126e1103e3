"""OpenAI's HTTP interface to a :class:`ascend_patch.generation.server.Service`: models, completions, chat completions.

https://platform.openai.com/docs/api-reference, as far as a text model has it. What is not served is refused, not
ignored.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from ascend_patch.data.templates import Template
from ascend_patch.generation.chat import prompt_ids
from ascend_patch.generation.errors import GenerationError
from ascend_patch.generation.sampling import Choice, SamplingOptions
from ascend_patch.generation.server import Overloaded, Piece, Service, Stopping

LARGEST_BODY = 4 << 20
"""Bytes of a request."""
Text = Annotated[str, Field(max_length=LARGEST_BODY)]
Pieces = AsyncGenerator[Piece]


class Body(BaseModel):
    """What completions and chat completions have in common. Other fields are refused by name."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """Not OpenAI's; as other servers have it."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Not OpenAI's; as other servers have it."""
    ignore_eos: bool = False
    """Not OpenAI's; as other servers have it."""
    n: int = Field(1, ge=1, le=16)
    seed: int | None = None
    stop: str | list[str] | None = Field(None, max_length=LARGEST_BODY)
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    user: str | None = None

    def sampling(self, room: int, logprobs: int | None) -> list[SamplingOptions]:
        """The options of each of the ``n`` choices. Without a seed each request draws anew."""
        seed = self.seed if self.seed is not None else uuid.uuid4().int % (1 << 31)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [
            SamplingOptions(
                max_new_tokens=min(self.max_tokens or room, room),
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                repetition_penalty=self.repetition_penalty,
                seed=seed + index,
                stop=tuple(stop),
                logprobs=logprobs,
                ignore_eos=self.ignore_eos,
            )
            for index in range(self.n)
        ]


class Completion(Body):
    """The body of ``/v1/completions``."""

    prompt: Text | list[int]
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: Literal[False] = False


class ChatCompletion(Body):
    """The body of ``/v1/chat/completions``."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)


class Answer:
    """How a kind of completion states its choices."""

    def __init__(self, kind: Literal["text_completion", "chat.completion"], model: str, tokenizer: Any) -> None:
        self._chat = kind == "chat.completion"
        self._kind = kind
        self._tokenizer = tokenizer
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, completions: Sequence[Sequence[Piece]], prompt_tokens: int) -> dict[str, Any]:
        """The completions, complete."""
        choices = []
        for index, pieces in enumerate(completions):
            text = "".join(piece.text for piece in pieces)
            content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            chosen = [choice for piece in pieces for choice in piece.choices]
            choices.append(self._choice(index, content, chosen, pieces[-1].finish))
        tokens = sum(piece.tokens for pieces in completions for piece in pieces)
        return {"object": self._kind, **self._head, "choices": choices, "usage": usage(prompt_tokens, tokens)}

    def chunk(self, index: int, piece: Piece, first: bool) -> dict[str, Any]:
        """One piece of a stream."""
        delta = ({"role": "assistant"} if first else {}) | {"content": piece.text}
        content = {"delta": delta} if self._chat else {"text": piece.text}
        kind = "chat.completion.chunk" if self._chat else self._kind
        choice = self._choice(index, content, piece.choices, piece.finish)
        return {"object": kind, **self._head, "choices": [choice]}

    def last(self, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        """What ends a stream whose client asked for ``include_usage``."""
        kind = "chat.completion.chunk" if self._chat else self._kind
        return {"object": kind, **self._head, "choices": [], "usage": usage(prompt_tokens, tokens)}

    def _choice(
        self, index: int, content: dict[str, Any], chosen: Sequence[Choice], finish: str | None
    ) -> dict[str, Any]:
        logprobs = (self._chat_logprobs(chosen) if self._chat else self._logprobs(chosen)) if chosen else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, chosen: Sequence[Choice]) -> dict[str, Any]:
        return {
            "tokens": [self._text(choice.token) for choice in chosen],
            "token_logprobs": [choice.logprob for choice in chosen],
            "top_logprobs": [{self._text(token): value for token, value in choice.top} for choice in chosen],
            "text_offset": [],
        }

    def _chat_logprobs(self, chosen: Sequence[Choice]) -> dict[str, Any]:
        def entry(token: int, logprob: float | None) -> dict[str, Any]:
            text = self._text(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        return {
            "content": [
                entry(choice.token, choice.logprob) | {"top_logprobs": [entry(*pair) for pair in choice.top]}
                for choice in chosen
            ]
        }

    def _text(self, token: int) -> str:
        return self._tokenizer.convert_ids_to_tokens(token)


def usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    """Tokens counted as OpenAI does."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }


def create_app(service: Service, template: Template | None, model: str) -> FastAPI:
    """The interface.

    Args:
        template: makes prompts of messages; None: there is no chat.
        model: the name under which the model is served. Requests for another one are refused.
    """
    app = FastAPI(title="ascend_patch", docs_url=None, redoc_url=None, openapi_url=None)
    tokenizer = service.engine.tokenizer

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "ascend_patch"}]}

    @app.post("/v1/completions")
    async def completions(body: Completion, request: Request) -> Any:
        prompt = tokenizer(body.prompt)["input_ids"] if isinstance(body.prompt, str) else body.prompt
        return await respond(body, prompt, body.logprobs, Answer("text_completion", model, tokenizer), request)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatCompletion, request: Request) -> Any:
        if template is None:
            raise GenerationError("This server has no prompt template, and therefore no chat. Use /v1/completions.")
        prompt = prompt_ids(template, body.messages)
        body.max_tokens = body.max_completion_tokens or body.max_tokens
        logprobs = body.top_logprobs if body.logprobs else None
        return await respond(body, prompt, logprobs, Answer("chat.completion", model, tokenizer), request)

    async def respond(body: Body, prompt: list[int], logprobs: int | None, answer: Answer, request: Request) -> Any:
        if body.model != model:
            raise GenerationError(f"The model {body.model!r} is not served here; {model!r} is.")
        if body.n > service.most_requests:
            raise GenerationError(f"n is {body.n}, allowed: up to {service.most_requests}, the requests at once.")
        room = max(1, service.engine.max_sequence_length - len(prompt))
        chat = isinstance(body, ChatCompletion)
        streams = [service.generate(prompt, options, chat) for options in body.sampling(room, logprobs)]
        if not body.stream:
            completions = await _together(streams, lambda stream: _all(stream, request))
            return answer.whole(completions, len(prompt))
        # The first pieces before the answer's head: what is refused has its own status.
        firsts = await _together(streams, anext)
        include_usage = bool((body.stream_options or {}).get("include_usage"))
        events = _events(firsts, streams, answer, len(prompt), include_usage)
        return StreamingResponse(events, media_type="text/event-stream")

    @app.middleware("http")
    async def limit(request: Request, call_next: Any) -> Any:
        size = request.headers.get("content-length")
        if size is None and "transfer-encoding" in request.headers:
            return _error(411, "The request does not say how large it is; state its content-length.")
        if int(size or 0) > LARGEST_BODY:
            return _error(413, f"The request is larger than {LARGEST_BODY} bytes.")
        return await call_next(request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return _error(400, found)

    @app.exception_handler(GenerationError)
    async def refused(request: Request, error: GenerationError) -> JSONResponse:
        return _error(429 if isinstance(error, Overloaded) else 503 if isinstance(error, Stopping) else 400, str(error))

    return app


async def _together[T](streams: Sequence[Pieces], read: Callable[[Pieces], Awaitable[T]]) -> list[T]:
    """What ``read`` makes of each of ``streams``, at once. Where one fails nobody wants the others."""
    tasks = [asyncio.ensure_future(read(stream)) for stream in streams]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
        raise


async def _all(stream: Pieces, request: Request) -> list[Piece]:
    """All pieces, unless the client goes away."""
    pieces = []
    async for piece in stream:
        pieces.append(piece)
        if await request.is_disconnected():
            await stream.aclose()
            break
    return pieces


async def _events(
    firsts: Sequence[Piece], streams: Sequence[Pieces], answer: Answer, prompt_tokens: int, include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events: the choices one after the other, a chunk for each piece. All of them are under way."""
    tokens = 0
    try:
        for index, (first, stream) in enumerate(zip(firsts, streams, strict=True)):
            piece: Piece | None = first
            while piece is not None:
                tokens += piece.tokens
                yield _event(answer.chunk(index, piece, piece is first))
                piece = await anext(stream, None)
    finally:
        for stream in streams:
            await stream.aclose()
    if include_usage:
        yield _event(answer.last(prompt_tokens, tokens))
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _error(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error" if status < 429 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)
