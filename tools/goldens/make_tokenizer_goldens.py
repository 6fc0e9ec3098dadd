#!/usr/bin/env python3
"""Writes tests/golden/tokenizers: small tokenizers and what the reference libraries make of tricky texts.

Every folder is a Hugging Face style model folder (tokenizer.json or tokenizer.model, and
tokenizer_config.json) plus cases.json:
  texts  text, ids with special tokens taken as plain text, ids with special tokens parsed, decoded text
  chats  messages and the ids of the rendered chat template with the generation prompt
Needs: pip install tokenizers transformers jinja2 sentencepiece. Deterministic.
"""

import io
import json
import pathlib
import random

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/tokenizers"

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' +"
    " message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2_CHAT = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message ="
    " messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}{% set content ="
    " '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content ="
    " message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() +"
    " ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
MISTRAL_TEXT_CHAT = (  # 7B Instruct v0.2 as first published
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] +"
    " ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
MISTRAL_CONTROL_CHAT = (  # 7B Instruct v0.3, without tools
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] | trim + eos_token}}{%- endif %}{%- endfor %}"
)

CHATS = [
    [("user", "Hello, world")],
    [("system", "You are terse."), ("user", "What's 12345?"), ("assistant", "A number."), ("user", "And 日本語?")],
    [("user", "  padded \n"), ("assistant", "\u00a0ok\u2003"), ("user", "\n\nlast\t")],
    [("system", " sys \n"), ("user", "x")],
]


def corpus():
    """Lines of generated text: words with a Zipf-like distribution, numbers, code, several scripts."""
    rng = random.Random(20240601)
    syllables = ["ta", "re", "mi", "con", "the", "an", "er", "ing", "lo", "st", "u", "pre", "wor", "ld", "he", "llo"]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4))) for _ in range(600)]
    words += ["the", "hello", "world", "don't", "I'm", "we'll", "user", "assistant", "system", "you've"]
    foreign = ["Привет", "мир", "日本語", "中文文本", "한국어", "naïve", "café", "Ünïcödé", "العربية", "हिन्दी", "🙂", "👩‍👩‍👧"]
    lines = []
    for _ in range(4000):
        n = rng.randint(3, 14)
        line = [words[min(int(rng.paretovariate(0.7)), len(words)) - 1] for _ in range(n)]
        if rng.random() < 0.3:
            line.insert(rng.randrange(n), str(rng.randrange(10 ** rng.randint(1, 7))))
        if rng.random() < 0.3:
            line.insert(rng.randrange(n), rng.choice(foreign))
        if rng.random() < 0.15:
            line.append(rng.choice(["x = f(y);", "if (a) {", "return 0;", "    int n = 1;", "// note", "==>", "..."]))
        lines.append(" ".join(line).capitalize() + rng.choice([".", "!", "?", ",", "\r\n", "\n\n", ""]))
    return lines


TRICKY = [
    "", " ", "  ", "\n", "a", " a", "a ", "  a  ", "\t\ta\tb", "hello world", "Hello, World! the world's",
    "I'm you're he'll we've they'd can't IT'S WE'LL I'M 'Twas 'S", "it'\u017f 'ſt’s", "don''t 'lx 'vx 'rx '", "123456789 1 12 123 1234",
    "x1y22z333", "３４５ ½ ⅷ ² ①②", "日本語のテキスト、中文文本。한국어", "Привет, мир! Ελληνικά العربية हिन्दी",
    "👩‍👩‍👧‍👦🏳️‍🌈🙂🙃", "e\u0301 a\u0308\u0323 n\u0303o A\u030a \u1e9b\u0323", "\u0344 \u212b \ufb01 \u1100\u1161\u11a8",
    "line1\r\nline2\r\n\r\n\r\nline3\n\n  indented\n\n\n", "trailing   ", "trailing\n", "trailing \n ", " \n \n x", "a  b   c    d",
    "\u00a0nbsp\u2003em\u3000cjk \u3000 x\u2028y\u0085z", "\u200bzero\u200dwidth\ufeffbom\u180evowel", "\x01\x02\x1b[0m \x7f\x1c\x1f",
    "...!!!???---===", "if (x != y) { return f(a[0], \"s\"); }\n", "    def f(x):\n        return x\n", "!\n\n?\r\n.", "_foo __bar__ a_b",
    "http://example.com/a?b=c&d=%20#e", "<s> </s> <unk> <0x41> <0x0A>", "a<|im_start|>b<|im_end|>\n<|endoftext|>c",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", "<|im_start|><|im_start|><|im_", "[INST] x [/INST] <<SYS>>",
    "text <think> middle </think> end", "a <mask>  b <mask>", "a <left> b", "x<right>   y", "nfc<caf\u00e9>x<cafe\u0301>y",
    "hello" * 60, "a" * 300, "日" * 120, "\u2581word \u2581\u2581two", "é" * 70 + " " + "ß" * 5, "\U0010ffff\ue000\u0378", "\ufffd", "1" * 100, " " * 200 + "x", "\n" * 90,
]


def random_texts(n):
    rng = random.Random(7)
    alphabet = list(" \n\r\t'sStTrReEvVmMlLdDaz09.,!_-<|>[]") + ["é", "e\u0301", "日", "🙂", "\u00a0", "\u3000", "½", "д", "ſ", "\u200d"]
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40))) for _ in range(n)]


TEXTS = TRICKY + random_texts(60)


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def write_folder(name, tokenizer, config, chat_template=None, chats=(), string_merges=False):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    spec = json.loads(tokenizer.to_str())
    if string_merges:
        spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    write_json(folder / "tokenizer.json", spec)
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    if chat_template:
        config = dict(config, chat_template=chat_template)
    write_json(folder / "tokenizer_config.json", config)

    texts = []
    for text in TEXTS:
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        parsed = tokenizer.encode(text, add_special_tokens=False).ids
        texts.append({"text": text, "plain": plain, "parsed": parsed})
        # The reference reads the letters of an added token as GPT-2's spelling of bytes and breaks "<caf\u00e9>".
        if "<caf" not in text:
            texts[-1]["decoded"] = tokenizer.decode(plain)
    rendered = []
    if chat_template:
        eos = config["eos_token"]
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=config["bos_token"],
                                       eos_token=eos if isinstance(eos, str) else eos["content"], chat_template=chat_template)
        for chat in chats:
            messages = [{"role": role, "content": content} for role, content in chat]
            text = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            rendered.append({"messages": messages, "ids": fast.encode(text, add_special_tokens=False)})
    write_json(folder / "cases.json", {"texts": texts, "chats": rendered})


def train_byte_level(pre_tokenizer, special, normalizer=None, ignore_merges=False, n_vocab=900):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=n_vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def split_and_bytes(*patterns):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def make_byte_level():
    from tokenizers import AddedToken

    gpt2 = train_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    gpt2.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)])
    gpt2.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False, special=True)])
    write_folder("gpt2", gpt2, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, string_merges=True)

    llama3 = train_byte_level(split_and_bytes(LLAMA3), ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], ignore_merges=True)
    bos = "<|begin_of_text|>"
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, llama3.token_to_id(bos))])])
    write_folder("llama3", llama3, {"bos_token": bos, "eos_token": {"content": "<|end_of_text|>", "lstrip": False}},
                 LLAMA3_CHAT, CHATS + [[("user", "a"), ("user", "b"), ("system", "c")]])

    qwen2 = train_byte_level(split_and_bytes(QWEN2), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizers.NFC())
    qwen2.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False), AddedToken("<caf\u00e9>", normalized=True)])
    write_folder("qwen2", qwen2, {"bos_token": None, "eos_token": "<|im_end|>", "add_bos_token": False}, CHATML, CHATS)

    regex = train_byte_level(split_and_bytes(r"\p{N}{1,3}", r"[一-龥\u3040-ゟ゠-ヿ]+", r"[!-/:-~]?[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), ["<s>", "</s>"])
    write_folder("regex_sequence", regex, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})


def train_sentencepiece(kind, controls):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.strip() for line in corpus()]), model_writer=model, model_type=kind, vocab_size=900 if kind == "bpe" else 640, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True,
        allow_whitespace_only_pieces=True, control_symbols=controls, character_coverage=0.999, num_threads=1, minloglevel=2)
    return model.getvalue()


def sentencepiece_to_bpe(model):
    """Merges from piece order, as Hugging Face's converter finds them."""
    pieces = [model.id_to_piece(i) for i in range(len(model))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece, rank in vocab.items():
        if model.is_byte(rank) or model.is_control(rank) or model.is_unknown(rank):
            continue
        splits = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in vocab and piece[k:] in vocab]
        merges += sorted(splits, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def make_sentencepiece():
    for name, kind in [("spm_bpe", "bpe"), ("spm_unigram", "unigram")]:
        serialized = train_sentencepiece(kind, ["[INST]", "[/INST]"] if kind == "unigram" else [])
        model = sentencepiece.SentencePieceProcessor(model_proto=serialized)
        folder = OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(serialized)
        write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
        # Cuts of a run of spaces tie in the unigram model; versions of the library break ties differently.
        kept = [text for text in TEXTS if kind == "bpe" or "   " not in text]
        texts = [{"text": text, "plain": model.encode(text), "decoded": model.decode(model.encode(text))} for text in kept]
        write_json(folder / "cases.json", {"texts": texts, "chats": []})
        if kind == "bpe":
            make_character_level(model)


def make_character_level(model):
    decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}

    llama2 = sentencepiece_to_bpe(model)
    llama2.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    llama2.decoder = decoder
    llama2.add_special_tokens(["<unk>", "<s>", "</s>"])
    write_folder("llama2", llama2, config, LLAMA2_CHAT, CHATS)
    write_folder("mistral_text", llama2, config, MISTRAL_TEXT_CHAT, [CHATS[0], CHATS[2]])

    mistral = sentencepiece_to_bpe(model)
    mistral.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    mistral.decoder = decoder
    mistral.add_special_tokens(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    mistral.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", mistral.token_to_id("<s>"))])
    write_folder("mistral_control", mistral, config, MISTRAL_CONTROL_CHAT, CHATS)


if __name__ == "__main__":
    make_byte_level()
    make_sentencepiece()
