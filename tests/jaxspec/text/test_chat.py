"""Valid messages, and their rendering by a template."""

import pytest

from jaxspec.text._chat import render

CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]}
TRIMMED = "{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{% endfor %}"
ADDED = "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}"
JOINED = "{% for m in messages %}{{ '[' ~ m.role ~ ']' ~ m.content }}{% endfor %}"
ASKING = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is none %}calls {{ m.tool_calls[0].name }}{% endif %}"
    "{% if m['content'] is not none %}{{ m.content }}{% endif %}{% if m.content == none %}!{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [TRIMMED, ADDED, JOINED], ids=["filter", "sum", "joined"])
@pytest.mark.parametrize("message", [CALL, {key: CALL[key] for key in ("role", "tool_calls")}], ids=["none", "no key"])
def test_a_message_that_only_calls_tools_adds_no_text(template, message):
    assert render(template, [message, {"role": "user", "content": "go on"}], {}) == "[assistant][user]go on"


def test_a_template_that_asks_whether_there_is_content():
    assert render(ASKING, [CALL, {"role": "user", "content": ""}], {}) == "[assistant]calls clock![user]"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "user", "content": None}, "message 1: expected content to be text, got None; .* pass ''"),
        ({"role": "user"}, "message 1: expected content to be text, got None"),
        ({"role": "user", "content": 3}, "message 1: expected content to be text, got 3"),
        ({"content": "hey"}, "message 1: expected a role such as 'user', got None"),
        ({"role": None, "content": "hey"}, "message 1: expected a role such as 'user', got None"),
        ("hey", "message 1: expected a dictionary with role and content, got 'hey'"),
        ({"role": "user", "content": [{"type": "image"}]}, "message 1: expected content to be text or parts"),
        ({"role": "user", "content": ["hey"]}, "message 1: expected content to be text or parts"),
    ],
)
def test_a_message_without_role_or_content_is_refused(message, error):
    with pytest.raises(ValueError, match=error):
        render(TRIMMED, [{"role": "user", "content": "hey"}, message], {})


@pytest.mark.parametrize(
    ("template", "text"), [(TRIMMED, "[user]one\ntwo"), (ADDED, "[user]one\ntwo"), (PARTS, "[user]<one><two>")]
)
def test_content_in_parts(template, text):
    """They are joined if the template would print the list."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render(template, [{"role": "user", "content": parts}], {}) == text
