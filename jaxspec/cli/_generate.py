"""``jaxspec generate``: continue a prompt with any model and method."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import jaxspec
from jaxspec.cli._methods import Drafting, Method, load, method_of, two_devices
from jaxspec.cli.shared import Flag, report
from jaxspec.generation.sampling import Sampling, checked
from jaxspec.methods.protocol import DecodingMethod
from jaxspec.zoo import PAIRS


@dataclass(frozen=True)
class ModelOptions:
    """Target, draft and their parameters.

    Attributes:
        target: name of an embedded pair, or path: written by train or convert, published checkpoint, or llama2.c file.
        draft: a smaller model with the same vocabulary, in one of these formats; a published EAGLE, Medusa or Hydra
            folder, or OUT/draft of train draft; or the name of a draft of the pair. An embedded pair has its own.
        dtype: of the parameters: float32, bfloat16 or float16. Default: float32 on CPU, else the checkpoint's dtype.
        int8: store the target's matrices as 8-bit integers.
    """

    target: str = PAIRS[0]
    draft: Path | None = None
    dtype: str | None = None
    int8: Flag = False


@dataclass(frozen=True)
class SamplingFlags:
    """How tokens are drawn; see ``jaxspec.Sampling``."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0


def generate(
    prompt: str,
    models: Annotated[ModelOptions, tyro.conf.arg(name="")] = ModelOptions(),
    method: Method | None = None,
    max_new_tokens: int = 128,
    chat: Flag = False,
    stop: tuple[str, ...] = (),
    drafting: Annotated[Drafting, tyro.conf.arg(name="")] = Drafting(),
    sampler: Annotated[SamplingFlags, tyro.conf.arg(name="")] = SamplingFlags(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Continue a prompt; every method generates the target's text.

    Seconds and tokens per second exclude compilation; compile_seconds is the time of a short first run.

    Args:
        prompt: raw text to continue, encoded by the target's tokenizer; with --chat the message of a user.
        models: target and draft.
        method: decoding method. Default: speculative with --tree, mirror for a pair, speculative with a draft, else
            autoregressive.
        max_new_tokens: maximum number of new tokens.
        chat: apply the model's chat template to the prompt.
        stop: texts that end the sequence, in addition to the model's stop tokens.
        drafting: settings of speculative and mirror decoding.
        sampler: sampling parameters.
        json: print one JSON object as the last line.
    """
    drafting.check(method)
    checked("max_new_tokens", max_new_tokens)
    sampling = Sampling(**vars(sampler))
    if "" in stop:
        raise ValueError(f"expected stop strings that are not empty, got {stop}")
    two_devices()
    needs = f"--method {method}" if method in ("speculative", "mirror") else "--tree" if drafting.tree else None
    chosen = method_of(load(**vars(models), drafting_for=needs), method, drafting)
    prompts: list[Any] = [[{"role": "user", "content": prompt}] if chat else prompt]
    ends: list[int | str] = [*stop, *(chosen.text.stop if chosen.text else ())]
    try:
        compiling = compile_seconds(chosen, prompts, max_new_tokens, sampling)
        result = jaxspec.generate(
            chosen, prompts, max_new_tokens, sampling=sampling, stop=ends, progress=not json and sys.stderr.isatty()
        )
    except jaxspec.NonFiniteLogits as error:
        print((error.output.text or [""])[0], flush=True)
        raise
    text, stats = (result.text or [""])[0], result.stats
    times = {"seconds": stats.prefill_seconds + stats.decode_seconds, "compile_seconds": compiling}
    times["tokens_per_second"] = stats.tokens_per_second
    if json:
        about = {"finish_reason": result.finish_reason[0], **times, "stats": stats.to_dict()}
        return report({"tokens": result.tokens[0], "text": text, **about}, True)
    print(text if chat else prompt + text)
    report({name: round(value, 3) for name, value in (times | stats.to_dict()).items()}, False)


def compile_seconds(method: DecodingMethod, prompts: list[Any], max_new_tokens: int, sampling: Sampling) -> float:
    """Return the seconds of a first run that stops after one token and compiles every program of the next run."""
    start, every_token = time.perf_counter(), range(method.vocab_size)
    jaxspec.generate(method, prompts, max_new_tokens, sampling=sampling, stop=every_token)
    return time.perf_counter() - start
