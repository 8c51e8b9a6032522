"""Chat templates: messages are checked, then rendered in Jinja's sandbox as in ``transformers``."""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

#: One message of a conversation: ``{"role": "user", "content": "…"}``.
Message = dict[str, Any]
#: Matches templates that read content parts themselves: they test whether content is a string, or iterate over it.
TAKES_PARTS = re.compile(r"""content['"\]]*\s+is\s+(not\s+)?string\b|\bin\s+\w+(\.content|\[['"]content['"]\])\s*-?%""")


class NoContent(str):
    """Content of a message that only calls tools: equals None in a template's tests, and renders as empty text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other is None or str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def render(template: str, messages: Sequence[Message], special: dict[str, str]) -> str:
    """Render a chat template over messages, in Jinja's sandbox.

    Content is text, or a list of parts ``{"type": "text", "text": "…"}``, which are joined by line breaks unless the
    template itself reads parts. In a message with ``tool_calls`` it may be None, which renders as empty text.

    Raises:
        ValueError: a message without role or content, parts that are not text, messages that the template rejects.
        ModuleNotFoundError: jinja2 is not installed.
    """
    try:
        from jinja2 import TemplateError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("chat needs jinja2: pip install 'jaxfed-jaxspec[huggingface]'") from error

    def reject(reason: str) -> None:
        raise TemplateError(reason)

    takes_parts = bool(TAKES_PARTS.search(template))
    checked = [_checked(index, message, takes_parts) for index, message in enumerate(messages)]
    try:
        compiled = _environment(reject).from_string(_unmarked(template))
        return compiled.render(messages=checked, add_generation_prompt=True, tools=None, documents=None, **special)
    except (TemplateError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected messages that the chat template accepts, got: {error}") from error


def _environment(reject: Callable[[str], None]) -> Any:
    """Return Jinja's sandbox with the functions that ``transformers`` adds."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    loops = "jinja2.ext.loopcontrols"
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loops])
    environment.globals["raise_exception"] = reject
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.tests["none"] = lambda value: value is None or isinstance(value, NoContent)
    return environment


def _checked(index: int, message: Any, takes_parts: bool) -> Message:
    """Return the message, with content that a template can render."""
    if not isinstance(message, dict):
        raise ValueError(f"message {index}: expected a dictionary with role and content, got {message!r:.80}")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"message {index}: expected a role such as 'user', got {message.get('role')!r:.80}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return {**message, "content": NoContent()}
    if isinstance(content, list):
        return {**message, "content": content if takes_parts else _joined(index, content)}
    if not isinstance(content, str):
        raise ValueError(
            f"message {index}: expected content to be text, got {content!r:.80}; only a message with tool_calls may "
            "have none, for an empty one pass ''"
        )
    return message


def _joined(index: int, parts: list[Any]) -> str:
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise ValueError(
            f'message {index}: expected content to be text or parts {{"type": "text", "text": "…"}}, got {parts!r:.80}'
        )
    return "\n".join(part["text"] for part in parts)


def _unmarked(template: str) -> str:
    """Return the template without its ``generation`` blocks, which mark answers for training."""
    template = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", template)
