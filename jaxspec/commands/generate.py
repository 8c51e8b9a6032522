"""``jaxspec generate``: continue a prompt with any model and method."""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from jaxspec.commands.shared import Flag, report
from jaxspec.decoding import DecodingMethod
from jaxspec.zoo import PAIRS

Method = Literal["autoregressive", "speculative", "mirror"]


@dataclass(frozen=True)
class Drafting:
    """How windows are drafted and verified.

    Attributes:
        window: tokens drafted a step (γ).
        num_candidates: tokens that the exit sends for each position (κ), for mirror.
        budget: branches that the draft rolls out ahead (R), for mirror.
        exit_layer: layers before the exit; default: the pair's own, else half of the target's.
        acceptance: match gives the tokens of plain decoding with the same seed, ratio their law.
    """

    window: int = 7
    num_candidates: int = 4
    budget: int = 4
    exit_layer: int | None = None
    acceptance: Literal["match", "ratio"] = "match"


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn: see ``jaxspec.requests.Options``."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0


def generate(
    prompt: str,
    target: str = PAIRS[0],
    draft: Path | None = None,
    method: Method | None = None,
    max_new_tokens: int = 128,
    dtype: str | None = None,
    int8: Flag = False,
    chat: Flag = False,
    stop: tuple[str, ...] = (),
    drafting: Annotated[Drafting, tyro.conf.arg(name="")] = Drafting(),
    sampler: Annotated[Sampler, tyro.conf.arg(name="")] = Sampler(),
    json: Flag = False,  # noqa: A002  the flag is called --json
) -> None:
    """Continue a prompt; the text is the target's, whatever the method.

    Args:
        prompt: raw text to continue, encoded as the tokenizer's file says; with --chat a user's message.
        target: name of an embedded pair, a folder that train or convert wrote, a published checkpoint, a llama2.c file.
        draft: a smaller model over the same vocabulary, in the same forms; an embedded pair brings its own.
        method: default: mirror for a pair, speculative with a draft, else autoregressive.
        max_new_tokens: tokens to add.
        dtype: of the parameters: float32, bfloat16, float16; default: float32 on CPU, else the checkpoint's own.
        int8: keep the target's matrices in eight bits.
        chat: put the prompt into the model's chat template.
        stop: texts that end the sequence, beside the model's own stop tokens.
        drafting: window, candidates, exit.
        sampler: temperature and filters.
        json: end with one JSON object on one line.
    """
    import jaxspec

    _two_devices()
    chosen = _method(target, draft, method, dtype, int8, drafting)
    prompts: list[Any] = [[{"role": "user", "content": prompt}] if chat else prompt]
    ends: list[int | str] = [*stop, *(chosen.text.stop if chosen.text else ())]
    result = jaxspec.generate(
        chosen, prompts, max_new_tokens, **vars(sampler), stop=ends, progress=not json and sys.stderr.isatty()
    )
    text = (result.text or [""])[0]
    if json:
        about = {"finish_reason": result.finish_reason[0], "stats": result.stats.to_dict()}
        return report({"tokens": result.tokens[0], "text": text, **about}, True)
    print(text if chat else prompt + text)
    report({name: round(value, 3) for name, value in result.stats.to_dict().items()}, False)


def _two_devices() -> None:
    """On a CPU two host devices stand for two meshes; nothing where devices have been made already."""
    from jaxspec.bench import batch_scheduling

    batch_scheduling()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", 2)


def _method(
    target: str, draft: Path | None, method: Method | None, dtype: str | None, int8: bool, how: Drafting
) -> DecodingMethod:
    import jaxspec
    from jaxspec import acceptance, candidates, zoo
    from jaxspec.models.store import open_model

    rule = getattr(acceptance, how.acceptance)()
    if target in PAIRS or (Path(target) / "pair.json").is_file():
        pair = zoo.load(target)
        large, small, head, layer = pair.target, pair.draft, pair.exit, pair.exit_layer
        method = method or "mirror"
    else:
        large, head, layer = open_model(target, dtype=dtype, int8=int8), None, None
        small = None
        method = method or ("autoregressive" if draft is None else "speculative")
    if draft is not None:
        small = open_model(draft, dtype=dtype)
    if method == "autoregressive":
        return jaxspec.autoregressive(large)
    if small is None:
        raise ValueError(f"expected --draft for --method {method}, got none; name a smaller model, same tokenizer")
    if method == "speculative":
        return jaxspec.speculative(large, small, how.window, acceptance=rule)
    return jaxspec.mirror(
        large,
        small,
        window=how.window,
        num_candidates=how.num_candidates,
        exit_layer=how.exit_layer or layer,
        exit=head,
        policy=candidates.mirror(how.budget),
        acceptance=rule,
    )
