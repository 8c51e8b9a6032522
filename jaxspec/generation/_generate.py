"""``generate`` and ``stream``: from prompts to tokens, text and statistics, with any decoding method."""

from collections.abc import Generator, Sequence

from tokenizers import Tokenizer
from tqdm import tqdm

from jaxspec.generation._loop import DecodingRun
from jaxspec.generation._results import Generation
from jaxspec.generation.requests import Prompt, Stop, text_of
from jaxspec.generation.sampling import Each, Sampling
from jaxspec.methods.protocol import DecodingMethod, Watch, unwatched
from jaxspec.text import Text

#: Tokens of the longest text of a model that says nothing of it.
LONGEST = 4096


def generate(
    method: DecodingMethod,
    prompts: Sequence[Prompt],
    max_new_tokens: Each[int] = 128,
    *,
    temperature: Each[float] | None = None,
    sampling: Sampling | None = None,
    stop: Stop | None = None,
    tokenizer: Tokenizer | Text | None = None,
    max_length: int | None = None,
    progress: bool = False,
    watch: Watch | None = None,
) -> Generation:
    """Decode all prompts as one batch.

    Args:
        method: from ``jaxspec.autoregressive``, ``speculative`` or ``mirror``.
        prompts: texts or conversations (with a tokenizer), or token ids.
        max_new_tokens: tokens to add at most: one number, or one for each prompt.
        temperature: short for ``sampling=Sampling(temperature=…)``; default 0: the most likely token.
        sampling: how tokens are drawn: temperature, filters, penalty and seed.
        stop: token ids and texts, one or several, that end a sequence; default: the target's stop tokens; ``[]``: none.
        tokenizer: encodes text prompts and decodes the result; default: the target's. Stop tokens and chat template
            stay the target's, unless it is a ``Text`` with its own.
        max_length: most tokens of prompt and new tokens together; default: of the longest text that the target was
            made for, 4,096 where that is unknown.
        progress: show a progress bar.
        watch: called with every program that a step enqueues (``jaxspec.generation.Timeline``).

    Returns:
        tokens, text, statistics, finish reasons and log-probabilities, one entry for each prompt.

    Raises:
        ValueError: no or an empty prompt, an invalid token id, a prompt too long for the cache, text or stop strings
            without a tokenizer, a setting outside its range, both ``temperature`` and ``sampling``.
        NonFiniteLogits: the target's logits are NaN or infinite; names sequence and position; ``output`` is partial.
    """
    text = text_of(method, tokenizer)
    sampling, max_length = _one_of(temperature, sampling), _most(method, max_length)
    run = DecodingRun(method, prompts, max_new_tokens, sampling, stop, text, max_length)
    total = sum(row.limit for row in run.rows)
    with tqdm(total=total, desc="decode", unit="token", disable=not progress) as bar:
        for added in run.steps(watch or unwatched):
            bar.update(added)
    return run.output()


def stream(
    method: DecodingMethod,
    prompt: Prompt,
    max_new_tokens: int = 128,
    *,
    temperature: float | None = None,
    sampling: Sampling | None = None,
    stop: Stop | None = None,
    tokenizer: Tokenizer | Text | None = None,
    max_length: int | None = None,
) -> Generator[str, None, Generation]:
    """Yield the text of one sequence while it is decoded: whole characters, and no part of a stop string.

    The arguments are those of ``generate``; the pieces joined are its text, and the generator returns its result.

    Raises:
        ValueError: as ``generate``.
        NonFiniteLogits: as ``generate``, after the text before it has been yielded.
    """
    text = text_of(method, tokenizer)
    if text is None or text.decode is None:
        raise ValueError("expected a tokenizer to write text with, got none; pass tokenizer=")
    sampling, max_length = _one_of(temperature, sampling), _most(method, max_length)
    run = DecodingRun(method, [prompt], max_new_tokens, sampling, stop, text, max_length)
    length = 0
    for _ in run.steps():
        written = run.rows[0].show()
        if len(written) > length:
            yield written[length:]
            length = len(written)
    return run.output()


def _most(method: DecodingMethod, max_length: int | None) -> int:
    own = method.text.max_length if method.text else None
    return (own or LONGEST) if max_length is None else max_length


def _one_of(temperature: Each[float] | None, sampling: Sampling | None) -> Sampling:
    if temperature is not None and sampling is not None:
        raise ValueError("expected temperature or sampling, got both; pass sampling=Sampling(temperature=…, …)")
    return sampling or Sampling(temperature=0.0 if temperature is None else temperature)
