"""Other programs in specbench.py, on the same weights, prompts and questions: transformers and llama.cpp."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import transformers_model

import jaxspec
from jaxspec.analysis.specbench import Answer, Question, prompt_of
from jaxspec.generation.requests import encoded

#: From a question and a temperature to an answer.
Side = Callable[[Question, float], Answer]
#: From token ids, a limit, a temperature and a seed to new tokens.
Written = Callable[[np.ndarray, int, float, int], list[int]]


def side(target: jaxspec.Model, write: Written, new_tokens: int) -> Side:
    """Answer questions with another program, prompts rendered by the target's own chat template."""
    text = target.text
    assert text is not None
    assert text.decode is not None

    def answered(question: Question, temperature: float) -> Answer:
        said: list[str] = []
        seconds, tokens = 0.0, []
        for turn in question.turns:
            said.append(turn)
            (ids,) = encoded([prompt_of(text, said)], text)
            start = time.perf_counter()
            tokens.append(write(ids, new_tokens, temperature, question.id))
            seconds += time.perf_counter() - start
            said.append(text.decode(tokens[-1]))  # type: ignore[misc]
        return Answer(seconds, sum(map(len, tokens)), 0, tokens)

    return answered


def transformers_sides(target: jaxspec.Model, new_tokens: int, draft: jaxspec.Model | None) -> dict[str, Side]:
    """transformers: plain, with prompt lookup, and assisted by our draft with a head over the whole vocabulary."""
    import torch

    model, stop = transformers_model(target), list(target.text.stop if target.text else ())
    assistant = None if draft is None else transformers_model(_whole_head(draft))

    def written(**options: Any) -> Written:
        def write(ids: np.ndarray, count: int, temperature: float, seed: int) -> list[int]:
            torch.manual_seed(seed)
            drawn = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
            inputs = torch.tensor(ids[None].astype(np.int64))
            settings = (
                {"max_new_tokens": count, "eos_token_id": stop or None, "pad_token_id": (stop or [0])[0]}
                | drawn
                | options
            )
            with torch.inference_mode():
                row = model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings)[0]
            return row[len(ids) :].tolist()

        return write

    sides = {"transformers": written(), "transformers, prompt lookup": written(prompt_lookup_num_tokens=5)}
    if assistant is not None:
        sides["transformers, assisted"] = written(assistant_model=assistant)
    return {name: side(target, write, new_tokens) for name, write in sides.items()}


def _whole_head(draft: jaxspec.Model) -> jaxspec.Model:
    """Return a draft whose head has a row of zeros for every token that it does not score: its likeliest stays."""
    from dataclasses import replace

    import jax.numpy as jnp

    from jaxspec.models import network
    from jaxspec.models.heads import tokens_of_head

    config, params = draft.network.config, dict(draft.params)
    if config.ends.head_tokens is None:
        return draft
    ids = tokens_of_head(params.pop("index"))
    params["head"] = jnp.zeros_like(params["embedding"]).at[ids].set(params["head"])
    return jaxspec.Model(network(replace(config, ends=replace(config.ends, head_tokens=None))), params, draft.text)


def llama_cpp_sides(target: jaxspec.Model, gguf: Path, new_tokens: int) -> dict[str, Side]:
    """llama.cpp by xllamacpp, if it is installed, with the float32 weights of a GGUF file: plain, and n-grams."""
    try:
        import xllamacpp
    except ImportError:
        return {}
    sides = {}
    for name, kind in {"llama.cpp": None, "llama.cpp, n-grams": "COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE"}.items():
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(gguf), 4096, 1, True
        params.cpuparams.n_threads, params.cache_prompt, params.verbosity = 2, False, -1
        if kind is not None:
            params.speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
        sides[name] = side(target, _completion(xllamacpp.Server(params), target.text), new_tokens)
    return sides


def _completion(server: Any, text: jaxspec.Text) -> Written:
    """Return tokens of the text that a server writes: its interface has no others."""

    def write(ids: np.ndarray, count: int, temperature: float, seed: int) -> list[int]:
        about = {"prompt": ids.tolist(), "n_predict": count, "temperature": temperature, "seed": seed}
        about |= {"cache_prompt": False, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        (choice,) = server.handle_completions(about)["choices"]
        ended = text.stop[:1] if choice["finish_reason"] == "stop" else ()
        return [*text.encode_marked(choice["text"]).tolist(), *ended]

    return write


def float32_gguf(source: Path, out: Path) -> Path:
    """Write a GGUF file with all tensors as float32, the metadata as they are."""
    import gguf

    reader = gguf.GGUFReader(source)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        part = Path(folder) / out.name
        writer = gguf.GGUFWriter(part, str(reader.get_field("general.architecture").contents()))
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
                kind = field.types[0]
                inner = {"sub_type": field.types[-1]} if kind == gguf.GGUFValueType.ARRAY else {}
                writer.add_key_value(field.name, field.contents(), kind, **inner)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            writer.add_tensor(tensor.name, values.reshape(tensor.shape[::-1]))
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            step()
        writer.close()
        part.replace(out)
    return out
