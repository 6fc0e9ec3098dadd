"""Text to tokens: trains the tokenizer on the books and packs them into one flat file of uint16 token ids.

A folder of work holds: tokenizer.model, {train,valid}.bin (token ids, book after book) and {train,valid}.npy (where each
book begins, and the end).
"""

import itertools
import pathlib
import tarfile

import numpy as np
import sentencepiece

BOS, EOS = "<s>", "</s>"
USER, ASSISTANT = "<|user|>", "<|assistant|>"
# Numbers are cut into pairs of digits from the left: a code of six digits is three tokens.
NUMBERS = [f"{i:02d}" for i in range(100)] + [str(i) for i in range(10)]
SHARDS = {"train": "books-train-*.tar.xz", "valid": "books-valid.tar.xz"}


def read_books(folder, split):
    """Yields the books of a split as text, in the order of their names: from .tar.xz shards, or .txt files in folder/split."""
    folder = pathlib.Path(folder)
    for shard in sorted(folder.glob(SHARDS[split])):
        with tarfile.open(shard) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                if member.isfile() and member.name.endswith(".txt"):
                    yield archive.extractfile(member).read().decode("utf-8")
    for path in sorted((folder / split).glob("*.txt")):
        yield path.read_text(encoding="utf-8")


def train_tokenizer(books, path, vocab_size, n_sentences=150_000):
    """A sentencepiece BPE tokenizer with byte fallback; no prefix space, so that pieces of text can be joined anywhere."""
    lines = (line for book in books for line in book.split("\n") if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.islice(lines, 2_000_000),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=16384,
        input_sentence_size=n_sentences,
        shuffle_input_sentence=True,
        control_symbols=[USER, ASSISTANT],
        required_chars="!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
        user_defined_symbols=["\n", "\n\n", *NUMBERS],
        num_threads=2,
        minloglevel=2,
    )
    path.with_suffix(".vocab").unlink()


def load_tokenizer(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(pathlib.Path(folder) / "tokenizer.model"))


def pack(books, tokenizer, folder, split):
    """Writes the books as token ids, each with the beginning-of-text token in front."""
    starts = [0]
    with open(folder / f"{split}.bin.partial", "wb") as out:
        while batch := list(itertools.islice(books, 16)):
            for ids in tokenizer.encode(batch, num_threads=2):
                book = np.array([tokenizer.bos_id(), *ids], dtype=np.uint16)
                out.write(book.tobytes())
                starts.append(starts[-1] + len(book))
    np.save(folder / f"{split}.npy", np.array(starts, dtype=np.int64))
    (folder / f"{split}.bin.partial").rename(folder / f"{split}.bin")


def prepare(text_folder, folder, vocab_size):
    """Makes what is not there yet: the tokenizer, then the packed splits."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.model").exists():
        train_tokenizer(read_books(text_folder, "train"), folder / "tokenizer.model", vocab_size)
    tokenizer = load_tokenizer(folder)
    for split in SHARDS:
        if not (folder / f"{split}.bin").exists():
            pack(read_books(text_folder, split), tokenizer, folder, split)
    return tokenizer


class PackedBooks:
    """The packed books of one split; cuts windows out of them."""

    def __init__(self, folder, split):
        folder = pathlib.Path(folder)
        self.tokens = np.memmap(folder / f"{split}.bin", dtype=np.uint16, mode="r")
        self.starts = np.load(folder / f"{split}.npy")

    def window(self, rng, n_tokens):
        """n_tokens of one book from a random place; of several books in turn where the book is shorter."""
        parts, missing = [], n_tokens
        while missing > 0:
            # A place drawn over all tokens: books weigh by their length.
            place = int(rng.integers(len(self.tokens)))
            book = int(np.searchsorted(self.starts, place, side="right")) - 1
            begin, end = int(self.starts[book]), int(self.starts[book + 1])
            place = max(begin, min(place, end - missing))
            part = np.asarray(self.tokens[place : min(end, place + missing)], dtype=np.int64)
            parts.append(part)
            missing -= len(part)
        return np.concatenate(parts)
