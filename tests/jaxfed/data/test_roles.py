"""The Shakespeare roles, and the samples cut from text."""

import json
import lzma

import numpy as np
import pytest

from jaxfed.data.characters import alphabet_of, next_characters
from jaxfed.data.roles import Role, read_roles, split_roles, split_text


@pytest.fixture(scope="module")
def roles():
    return read_roles()


def test_the_embedded_roles(roles):
    assert [role.id for role in roles] == list(range(1347))
    assert len({role.user for role in roles}) == 1347
    assert len({role.play for role in roles}) == 37
    assert sum(len(role.text) for role in roles) == pytest.approx(4.35e6, rel=0.01)
    assert len(alphabet_of(role.text for role in roles)) == 77
    assert all(role.user == f"{role.play}:{role.user[len(role.play) + 1 :]}" and role.text.strip() for role in roles)


def test_short_roles_are_left_out_and_ids_stay(roles):
    long = read_roles(min_chars=2000)
    assert long == tuple(role for role in roles if len(role.text) >= 2000)
    assert 0 < len(long) < 1347


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_others_are_read(tmp_path, packed):
    text = "\n".join(json.dumps({"user": f"p:{name}", "text": name * 3}) for name in "aé")
    path = tmp_path / "roles"
    path.write_bytes(lzma.compress(text.encode()) if packed else text.encode())
    assert read_roles(path) == (Role(0, "p:a", "aaa"), Role(1, "p:é", "ééé"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_line_ends_at_a_line_feed_only(tmp_path, end, encoding):
    """Not at what JSON allows inside a string."""
    texts = ["one\u2028two\u2029three\u0085four", "five"]
    lines = [json.dumps({"user": f"p:{number}", "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    (tmp_path / "roles").write_bytes("".join(line + end for line in lines).encode(encoding))
    assert [role.text for role in read_roles(tmp_path / "roles")] == texts
    (tmp_path / "roles").write_bytes(b"")
    assert read_roles(tmp_path / "roles") == ()


@pytest.mark.parametrize(
    "line",
    [b'{"user": "p:B", "te', b'{"user": "p:B"}', b'["p:B", "t"]', b"", b'{"user": "\xff"}', b'{"user":"p:B","text":1}'],
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "roles.jsonl"
    path.write_bytes(b'{"user": "p:A", "text": "a\xe2\x80\xa8"}\n' + line + b'\n{"user": "p:C", "text": "c"}\n')
    with pytest.raises(ValueError, match=r"roles\.jsonl, line 2: expected a JSON object .*; remove or repair the line"):
        read_roles(path)


def test_split_by_role(roles):
    kept, out = split_roles(roles[:10], [7, 2])
    assert [role.id for role in out] == [2, 7]
    assert sorted([*kept, *out], key=lambda role: role.id) == list(roles[:10])
    with pytest.raises(ValueError, match=r"expected ids of the 10 roles, got unknown ids \[11, 99\]"):
        split_roles(roles[:10], [99, 3, 11])


@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_split_within_a_role(roles, fraction):
    for role in roles[:300]:
        if len(role.text) < 2000:
            continue
        seen, unseen = split_text(role.text, fraction)
        assert seen + unseen == role.text
        assert seen
        assert unseen
        assert len(seen) <= fraction * len(role.text)
        assert seen.endswith("\n") or "\n" not in role.text[: len(seen)]


def test_texts_that_cannot_be_split_are_refused():
    assert split_text("abcdefghij") == ("abcdefgh", "ij")
    with pytest.raises(ValueError, match="expected a text long enough to be cut in two, got 1 characters"):
        split_text("a")
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=r"expected a fraction inside \(0, 1\), got"):
            split_text("abc", fraction)


def test_every_window_predicts_the_character_behind_it(roles):
    text, context = roles[3].text[:400], 5
    alphabet = alphabet_of([text])
    samples = next_characters(text, alphabet, context)
    assert samples["x"].shape == (len(text) - context, context)
    assert (samples["x"].dtype, samples["y"].dtype) == (np.uint8, np.int32)
    for position in (0, 7, len(text) - context - 1):
        window = "".join(alphabet[number] for number in samples["x"][position])
        assert window + alphabet[samples["y"][position]] == text[position : position + context + 1]


def test_texts_without_a_sample_and_strange_characters_are_refused():
    with pytest.raises(ValueError, match="expected a text longer than its context ≥ 1, got 2 characters for 2"):
        next_characters("ab", "ab", 2)
    for unknown in "a~":
        with pytest.raises(ValueError, match=f"expected characters of 'bcd', got '{unknown}'; add it or drop it"):
            next_characters(f"bcd{unknown}b", "bcd", 2)
