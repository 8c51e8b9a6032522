"""Byte-pair encoding of bytes, from a vocabulary and merges, with the published ways to split a text into words."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

#: SentencePiece's character for a space.
SPACE = "▁"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#: How words are split, by the numbers of digits that a word may have.
WORDS = CONTRACTIONS + (
    r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: llama.cpp's names of the ways to split, by the way: as GPT-2, with every digit alone, as Qwen 2, as Llama 3.
GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat")
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
QWEN = ("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan")
LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3")
LIKE_LLAMA3 = (*LLAMA3, "dbrx", "smaug-bpe")
#: Classes of ``tokenizer_config.json`` whose vocabularies come without ``tokenizer.json``, and their way.
CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}


def byte_pairs(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], way: str) -> Tokenizer:
    """Return a tokenizer.

    Args:
        vocabulary: token → id.
        merges: pairs, those that are merged first before others.
        way: llama.cpp's name of how a text is split into words.

    Raises:
        ValueError: a way that is not known.
    """
    split: pre_tokenizers.PreTokenizer
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way in GPT2 + DIGITS)
    if way in DIGITS:
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    elif way in QWEN + LIKE_LLAMA3:
        words = Regex(WORDS.format(digits="" if way in QWEN else "{1,3}"))
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), split])
    elif way not in GPT2:
        known = ", ".join(sorted(GPT2 + DIGITS + QWEN + LIKE_LLAMA3))
        raise ValueError(f"expected words split in one of the ways {known}, got {way}")
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), ignore_merges=way in LLAMA3))
    tokenizer.normalizer = normalizers.NFC() if way in QWEN else None
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    return tokenizer


def piece_decoder(prefix: bool) -> decoders.Decoder:
    """Return what joins SentencePiece's pieces: spaces and bytes are replaced, and a ``prefix`` space removed."""
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    return decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
