"""Small tokenizers in the formats that checkpoints bring, made here: nothing is downloaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path

PROSE = "".join(f"Sentence {number} of a naïve — and long — story.\n" for number in range(400))


def write_byte_bpe(folder: Path, vocab: int = 300, puts_bos: bool = False, **settings) -> Path:
    """tokenizer.json as GPT-2's: bytes, merged as PROSE has them; <s> is 0 and </s> is 1.

    `puts_bos`: its own post-processor puts <s> before a text. `settings` are tokenizer_config.json, if any.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([PROSE], trainer)
    if puts_bos:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return _save(made, folder, settings)


def write_sentencepiece(folder: Path, **settings) -> Path:
    """tokenizer.json as Llama-2's: a space becomes "▁", one is put in front, unknown characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = [("▁", "s"), ("t", "o"), ("r", "y"), ("to", "ry"), ("▁s", "tory"), ("i", "s"), ("▁", "is")]
    letters = {letter for pair in merges for piece in pair for letter in piece} | set("▁abcdefghi0123456789.")
    for piece in [*sorted(letters), *("".join(pair) for pair in merges)]:
        vocab.setdefault(piece, len(vocab))
    made = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return _save(made, folder, settings)


def _save(made, folder: Path, settings: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


PIECES = [" ", "a", "b", "c", "é", " a", "ab", "abc", "bc", " ab", "ca", " abca", "\n\n"]


def write_llama2c(file: Path, pieces: list[str] = PIECES) -> Path:
    """tok*.bin with these pieces above the bytes; earlier pieces have the better scores."""
    entries = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)]
    entries += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    entries += [(piece, -float(rank)) for rank, piece in enumerate(pieces)]
    raw = struct.pack("<i", max(len(piece.encode()) for piece, _ in entries))
    for piece, score in entries:
        raw += struct.pack("<fi", score, len(piece.encode())) + piece.encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw)
    return file
