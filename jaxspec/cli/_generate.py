"""``jaxspec generate``: continue prompts, or talk, with any model and method."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

import jaxspec
from jaxspec.cli._methods import WITH_DRAFT, Drafting, Loaded, Method, load, method_of, two_devices
from jaxspec.cli._tuned import read_tuned
from jaxspec.cli.checks import check_readable
from jaxspec.cli.shared import Flag, report
from jaxspec.generation import Generation
from jaxspec.generation.sampling import Sampling, checked
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.models import for_long_texts
from jaxspec.text import conversation_of, read_prompts
from jaxspec.zoo import PAIRS


@dataclass(frozen=True)
class ModelOptions:
    """Target, draft and their parameters.

    Attributes:
        target: name of an embedded pair, or path: written by train or convert, published checkpoint or its name on the
            hub, GGUF or llama2.c file.
        draft: a smaller model with the same vocabulary, in one of these formats; a published EAGLE, Medusa or Hydra
            folder, or OUT/draft of train draft; or the name of a draft of the pair. An embedded pair has its own.
        dtype: of the parameters: float32, bfloat16 or float16. Default: float32 on CPU, else the checkpoint's dtype.
        int8: store the target's matrices as 8-bit integers.
    """

    target: str = PAIRS[0]
    draft: Path | None = None
    dtype: str | None = None
    int8: Flag = False


#: Settings of ``generation_config.json`` that are read.
PUBLISHED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class PromptFlags:
    """Where prompts come from.

    Attributes:
        prompt: raw text to continue, encoded by the target's tokenizer; with --chat the message of a user.
        prompts: file of prompts, one after the other: a text, or .jsonl with prompt, text, question, messages or turns.
        chat: apply the model's chat template to the prompt.
    """

    prompt: str | None = None
    prompts: Path | None = None
    chat: Flag = False

    @property
    def is_interactive(self) -> bool:
        """Whether a person types messages on a terminal."""
        return self.chat and self.prompt is None and self.prompts is None and sys.stdin.isatty()

    def read(self) -> list[Any]:
        """Return the prompts, of the one source that was given.

        Raises:
            ValueError: two sources, or an empty one.
        """
        if self.prompt is not None and self.prompts is not None:
            raise ValueError("expected --prompt or --prompts, got both; leave one out")
        check_readable(self.prompts)
        if self.prompts is not None:
            texts = read_prompts(self.prompts)
        else:
            texts = [sys.stdin.read() if self.prompt is None else self.prompt]
        if texts == [""]:
            raise ValueError(
                "expected a prompt, got an empty one; pass --prompt TEXT, --prompts FILE, or text on stdin"
            )
        return [conversation_of(text) if self.chat else text for text in texts]


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are drawn; see ``jaxspec.Sampling``. Default: as the model's generation_config.json, else greedily."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0

    def sampling(self, published: dict[str, Any] | None = None) -> Sampling:
        """Return the settings that were given, and those of a ``generation_config.json`` where it samples.

        Raises:
            ValueError: a number outside its range.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not (published or {}).get("do_sample"):
            return Sampling(**given)
        stated = {name: published[name] for name in PUBLISHED if published and published.get(name) is not None}
        return Sampling(**({"temperature": 1.0} | stated | given))


class Answering(NamedTuple):
    """What all prompts share.

    Attributes:
        method: the decoding method.
        sampling: how tokens are drawn.
        limits: most new tokens, and most tokens in all.
        stop: what ends a sequence, beside the model's stop tokens.
    """

    method: DecodingMethod
    sampling: Sampling
    limits: dict[str, Any]
    stop: tuple[str, ...]

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``jaxspec.generate`` and ``jaxspec.stream``."""
        own = self.method.text.stop if self.method.text else ()
        return {"sampling": self.sampling, "stop": [*self.stop, *own], **self.limits}

    def compile(self, prompt: Any) -> float:
        """Return the seconds of a run that stops after one token: it compiles every program of the next run."""
        start, every_token = time.perf_counter(), range(self.method.vocab_size)
        jaxspec.generate(self.method, [prompt], sampling=self.sampling, stop=every_token, **self.limits)
        return time.perf_counter() - start

    def show(self, prompt: Any, before: str = "") -> Generation:
        """Write the text to the terminal while it is decoded."""
        print(before, end="", flush=True)
        pieces = jaxspec.stream(self.method, prompt, **self.arguments())
        while True:
            try:
                print(next(pieces), end="", flush=True)
            except StopIteration as end:
                print(flush=True)
                return end.value

    def decode(self, prompt: Any) -> Generation:
        """Return the whole result."""
        try:
            return jaxspec.generate(self.method, [prompt], **self.arguments())
        except jaxspec.NonFiniteLogits as error:
            print((error.output.text or [""])[0], flush=True)
            raise


def generate(
    source: Annotated[PromptFlags, tyro.conf.arg(name="")] = PromptFlags(),
    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = ModelOptions(),
    method: Method | None = None,
    max_new_tokens: int = 128,
    max_length: int | None = None,
    stop: tuple[str, ...] = (),
    drafting: Annotated[Drafting, tyro.conf.arg(name="")] = Drafting(),
    sampler: Annotated[SamplingFlags, tyro.conf.arg(name="")] = SamplingFlags(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Continue a prompt, shown as it is written; every method generates the target's text.

    Without --prompt and --prompts the prompt is read from standard input; with --chat on a terminal it is a
    conversation. Seconds and tokens per second exclude compilation; compile_seconds is the time of a short first run.
    Compiled programs are kept for the next call. Where jaxspec tune --save left a tuned.json for this target, draft and
    machine, method and settings that no flag sets are the tuned ones; a line on standard error says so.

    Args:
        source: of the prompts.
        models: target and draft.
        method: decoding method; lookup needs no draft. Default: what was tuned, else speculative with --tree, mirror
            for a pair or a draft and a trained exit, speculative with a draft, else autoregressive.
        max_new_tokens: maximum number of new tokens.
        max_length: most tokens of prompt and answer together. Default: what the target was made for. Beyond the
            original length of a model with LongRoPE its factors for long texts are used.
        stop: texts that end the sequence, in addition to the model's stop tokens.
        drafting: settings of speculative and mirror decoding.
        sampler: sampling parameters.
        json: print one JSON object for each prompt, on a line of its own.
    """
    drafting.check(method)
    checked("max_new_tokens", max_new_tokens)
    sampler.sampling()
    if "" in stop:
        raise ValueError(f"expected stop strings that are not empty, got {stop}")
    interactive = source.is_interactive and not json
    prompts = [] if interactive else source.read()
    two_devices()
    needs = f"--method {method}" if method in WITH_DRAFT else "--tree" if drafting.tree else None
    loaded = load(**vars(models), drafting_for=needs, exit=drafting.exit)
    most = loaded.target.network.config.max_length
    if max_length is not None and most is not None and max_length > most:
        loaded = loaded._replace(target=for_long_texts(loaded.target))
    decoder = method_of(loaded, *defaults(models, loaded, method, drafting))
    sampling = sampler.sampling(decoder.text.defaults if decoder.text else None)
    answering = Answering(decoder, sampling, {"max_new_tokens": max_new_tokens, "max_length": max_length}, stop)
    if interactive:
        return converse(answering)
    for each in prompts:
        compiling = answering.compile(each)
        result = answering.decode(each) if json else answering.show(each, each if isinstance(each, str) else "")
        tell(result, compiling, json)


def defaults(
    models: ModelOptions, loaded: Loaded, method: Method | None, how: Drafting
) -> tuple[Method | None, Drafting]:
    """Return method and settings, those that no flag sets from a ``tuned.json`` if there is one; say so."""
    tuned, line = read_tuned(models.target, models.draft, loaded.target)
    is_used = tuned is not None and how.tree is None and method in (None, tuned.method)
    if line and (is_used or tuned is None):
        print(line, file=sys.stderr)
    return (tuned.method, tuned.completed(how)) if tuned and is_used else (method, how)


def converse(answering: Answering) -> None:
    """Read messages from the terminal and answer, until its end."""
    messages: list[dict[str, Any]] = []
    for line in lines():
        messages.append({"role": "user", "content": line})
        answer = answering.show(list(messages))
        messages.append({"role": "assistant", "content": (answer.text or [""])[0]})


def lines() -> Iterator[str]:
    """Yield the lines that a person types, until Control-D or /exit."""
    print("Ctrl-D or /exit ends the conversation.", file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return print()
        if line == "/exit":
            return None
        if line:
            yield line


def tell(result: Generation, compiling: float, json: bool) -> None:
    """Print statistics: in JSON with tokens and text, else on standard error, where they do not mix with the text."""
    stats = result.stats
    times = {"seconds": stats.prefill_seconds + stats.decode_seconds, "compile_seconds": compiling}
    times["tokens_per_second"] = stats.tokens_per_second
    if json:
        about = {"finish_reason": result.finish_reason[0], **times, "stats": stats.to_dict()}
        return report({"tokens": result.tokens[0], "text": (result.text or [""])[0], **about}, True)
    used = stats.accepted / max(stats.steps, 1)  # not accepted_length, which counts what the end of the text cuts off
    accepted = f", {used:.2f} drafted tokens used a step" if stats.accepted else ""
    print(
        f"{stats.new_tokens} tokens in {times['seconds']:.2f} s, {stats.tokens_per_second:.1f} a second{accepted}; "
        f"compiled in {compiling:.1f} s; ended by {result.finish_reason[0]}",
        file=sys.stderr,
    )
