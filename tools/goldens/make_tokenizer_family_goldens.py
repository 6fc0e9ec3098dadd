#!/usr/bin/env python3
"""Writes tests/golden/tokenizers/families: a small tokenizer of every published kind, and what the reference libraries make of hard text.

  torture.json         lines of every script, kind of space, digit and emoji sequence; shared by all folders
  whole.json           how the lines are joined into one long text
  <kind>/              a model folder (tokenizer.json or tokenizer.model) and ids.json:
    plain, parsed      ids of every line, special tokens as text and as tokens (parsed: only where they differ, by line)
    decoded            text of the plain ids, only where it is not the line itself, by line
    with_special       ids of the first line with what the post-processor adds
    whole              number and FNV-1a of the ids of the long text
Needs: pip install tokenizers sentencepiece. Deterministic.
"""

import array
import io
import json
import pathlib

import sentencepiece
from make_tokenizer_goldens import LLAMA3, QWEN2, TEXTS, corpus, sentencepiece_to_bpe, write_json
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/tokenizers/families"
WHOLE_REPEATS = 12  # above the size from which several threads share a text

# Patterns as the models' tokenizer.json spell them.
DEEPSEEK_V3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
               r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]
DEEPSEEK_V2 = ["[\r\n]",
               "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
               "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$", "[一-龥ࠀ-一가-퟿]+"]
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
          r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?"
         r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SCRIPTS = [
    "The quick brown fox jumps over the lazy dog.", "Zażółć gęślą jaźń, Ærøskøbing, İstanbul ı I i, straße STRASSE ẞ",
    "Съешь же ещё этих мягких французских булок", "Ξεσκεπάζω την ψυχοφθόρα σας βδελυγμία ΣΑΣ", "Բարեւ աշխարհ", "გამარჯობა მსოფლიო ᲒᲐᲛᲐᲠᲯᲝᲑᲐ",
    "مرحبا بالعالم ١٢٣٤٥ ۱۲۳ َّ لا", "שלום עולם שָׁלוֹם ״ג׳״", "नमस्ते दुनिया १२३ क्षत्रिय ज़", "ওহে বিশ্ব ৪৫৬", "வணக்கம் உலகம் ௧௨", "ಹಲೋ ವರ್ಲ್ಡ್", "สวัสดีชาวโลก ๑๒๓ น้ำ",
    "ສະບາຍດີ", "བཀྲ་ཤིས་བདེ་ལེགས།", "မင်္ဂလာပါ", "ជំរាបសួរ ១២", "ᠮᠣᠩᠭᠣᠯ\u180e", "ሰላም ልዑል ፩፪", "ᎣᏏᏲ Ꭳ ꭰ", "ᚠᚢᚦᚨᚱᚲ", "日本語のテキスト、ひらがなカタカナー漢字々〆ヶ", "中文繁體與简体，。！？《》",
    "𠮷野家 㐀 𪚥", "한국어 텍스트 \u1112\u1161\u11ab\u1100\u116e\u11a8 ㄱㄴㄷ", "ｆｕｌｌ ｗｉｄｔｈ １２３ ｶﾅ", "𝓗𝓮𝓵𝓵𝓸 𝟘𝟙𝟚 ℌℯ ①②③ ⅫⅧ ½⅓ ²₃ ㊙ ㎏", "ﬁﬂ ŉ Ǆǅǆ ﷺ ™ ℡",
]
SYMBOLS = [
    "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪🇫🇷🇯 ☺️ ☺︎ 1️⃣ #️⃣", "🙂🙃😀😃😄" * 8, "e\u0301\u0302\u0303\u0304 a\u0323\u0307 q\u0307\u0323 \u0301 lone", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́O̡̝̩", "\u212b Å A\u030a \u2126 Ω \u1e9b\u0323 ſ",
    "\ue000\uf8ff\U000f0000\U0010fffd", "\u0378\u0380\U0003fffe\uffff\ufffe\ufdd0", "\u200b\u200c\u200d\u2060\ufeff\u00ad\u061c\u202e\u2066rtl\u2069", "\x00\x01\x08\x0b\x0c\x0e\x1b\x1c\x1d\x1e\x1f\x7f\x80\x9f",
    "“quotes” ‘single’ «guillemets» — – ‐ … • † ‰ ′″ ⁄ ※", "+−×÷=≠≈≤≥∞∫∑√∂ €£¥₹₿¢ °′″", "─│┌┐└┘├┤█▓▒░ ▁▂▃ ▁word ▁▁", "a\u0300" * 40, "^^ ~~ ``code`` $x$ \\n %% @@ && || ~~~ ___ ***",
    "<html><body class=\"x\">&nbsp;</body></html>", "{\"key\": [1, 2.5e-3, null], \"k\\u00e9y\": true}", "user@example.com https://a.b/c?d=%20&e#f C:\\dir\\file.txt 192.168.0.1 ::1",
    "for (int i=0;i<10;++i) {\n\tsum += a[i]*b[i]; // sum\n}\n", "def f(x):\n    if x > 0:\n        return x**2\n\n\n# end", "SELECT * FROM t WHERE a='b''c';", "camelCase PascalCase snake_case SCREAMING_CASE kebab-case XMLHttpRequest iPhone15Pro",
    "I'm I'M i'Ll WE'VE you're YOU'RE he'd HE'D it's IT'S don't DON'T 'tis o'clock rock'n'roll ''s 's'S'ſ", "’s ’ll 'lL 'Re 'VE' 'd'D'm'M", "x's1's_'s\n's\t's  's",
    "0 00 000 0000 1234567 12,345.67 3.14159 0x1F 1e10 +49 1-2-3 2024-06-01T12:00:00Z", "٠١٢٣٤٥٦٧٨٩ ०१२३ 〇一二三 ⅠⅡ 𝟏𝟐𝟑𝟒 ¹²³⁴", "1a2b3c 1 2 3 a1 1a 1٢३４",
]
SPACES = [
    " ", "   ", "\t", "\t\t\t", "\n", "\r", "\r\n", "\n\n\n\n", "\r\n\r\n\r\n", " \n", "\n ", " \n \n ", "\t\n\t", "a\rb\nc\r\nd\u0085e\u2028f\u2029g\x0bh\x0ci", "a\u00a0b\u1680c\u2000d\u2003e\u2009f\u200ag\u202fh\u205fi\u3000j",
    "  \u00a0  x", " \u3000 \u3000", "x \u2003 y", "x\u2003y \u2003", "x  \n  y", "x \r\n\t y  ", "\u180e \u180ex \u200b y", "x   5", "   5", "   !", "   é", "   日", "    \n    5\n   ", "tail ", "tail  ", "tail\t", " lead", "  lead", "\tlead", "\u00a0lead",
    "a" * 200, "A" * 200, "Ab" * 100, "aB" * 100, " " * 130, "\n" * 130, " \n" * 70, "9" * 130, "!" * 130, "日" * 130, "한" * 80, "é" * 130, "🙂" * 60, "'s" * 60, "_" * 130, "\u0301" * 90, "\t" * 90, "\u3000" * 90, "<" * 90, "\ue000" * 60, "= " * 60,
]
SPECIALS = [
    "a<|one|>b", "<|one|><|two|>", "  <|one|>  x", "x <|two|> y", "<|one|", "<|one|>\n\nhi<|two|>\n", "<s>x</s>", "<s> x", "x</s> y", "<unk><0x41>", "a<left>b  <left>  c", "a <right>  b<right>c", "<both>  <both> x \n<both>\n y", "word wordword a-word word, (word) _word word1 日word word日",
    "<|one|>é<|one|>e\u0301", "  <tool>call</tool>  x", "<tool><tool></tool", "<|ONE|>",
]
TORTURE = ["Hello, world! It's 12345 日本."] + SCRIPTS + SYMBOLS + SPACES + SPECIALS + [t for t in TEXTS[1:] if "<caf" not in t]
WHOLE = "\n".join(TORTURE)


def fnv1a(ids):
    value = 0xCBF29CE484222325
    for byte in array.array("i", ids).tobytes():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def write_folder(name, config, plain, parse, decode, with_special):
    folder = OUT / name
    write_json(folder / "tokenizer_config.json", config)
    ids = [plain(text) for text in TORTURE]
    out = {"plain": ids, "parsed": {}, "decoded": {}, "with_special": with_special(TORTURE[0])}
    for i, text in enumerate(TORTURE):
        parsed = parse(text)
        if parsed != ids[i]:
            out["parsed"][str(i)] = parsed
        decoded = decode(ids[i])
        if decoded != text:
            out["decoded"][str(i)] = decoded
    whole = plain("\n".join([WHOLE] * WHOLE_REPEATS))
    out["whole"] = {"n": len(whole), "fnv1a": fnv1a(whole)}
    write_json(folder / "ids.json", out)


def write_hf(name, tokenizer, config=None):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", json.loads(tokenizer.to_str()))

    def encode(text, as_text):
        tokenizer.encode_special_tokens = as_text
        return tokenizer.encode(text, add_special_tokens=False).ids

    write_folder(name, config or {}, lambda t: encode(t, True), lambda t: encode(t, False), tokenizer.decode,
                 lambda t: tokenizer.encode(t, add_special_tokens=True).ids)


LINES = corpus()[:1500] + SCRIPTS + SYMBOLS


def byte_level(name, pre_tokenizer, normalizer=None, ignore_merges=False, post=None, added=(), special=("<|one|>", "<|two|>")):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(added))
    if post:
        tokenizer.post_processor = post(tokenizer)
    write_hf(name, tokenizer)


def template(*tokens):
    def make(tokenizer):
        return processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single=" ".join(tokens) + " $A", special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens])])
    return make


def splits(*patterns, digits=None, behavior="isolated"):
    steps = [pre_tokenizers.Split(Regex(pattern), behavior) for pattern in patterns]
    steps += [digits] if digits else []
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def make_byte_level():
    added = [AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False), AddedToken("<both>", lstrip=True, rstrip=True, normalized=False)]
    byte_level("gpt2", pre_tokenizers.ByteLevel(add_prefix_space=False), added=added)
    byte_level("gpt2_prefix_space", pre_tokenizers.ByteLevel(add_prefix_space=True))
    byte_level("gpt_neox", pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC(),
               added=[AddedToken(" " * n, normalized=False) for n in range(2, 9)])
    byte_level("starcoder", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]))
    byte_level("llama3", splits(LLAMA3), ignore_merges=True, post=template("<|one|>"))
    byte_level("qwen2", splits(QWEN2), normalizers.NFC(), added=[AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=False)])
    byte_level("glm4", splits(LLAMA3), post=template("<|one|>", "<|two|>"))
    byte_level("deepseek_v2", splits(*DEEPSEEK_V2, digits=pre_tokenizers.Digits(individual_digits=True)), normalizers.Sequence([]))
    byte_level("deepseek_v3", splits(*DEEPSEEK_V3), post=template("<|one|>"))
    byte_level("tekken", splits(TEKKEN), ignore_merges=True, post=template("<|one|>"))
    byte_level("cl100k", splits(CL100K))
    byte_level("o200k", splits(O200K), ignore_merges=True)
    byte_level("regex_words", splits(r"\w+", r"[^\w\s]+", r"\S$|^\S"))
    byte_level("digits_together", splits(r"\s+", digits=pre_tokenizers.Digits(individual_digits=False)))
    byte_level("single_word", splits(QWEN2), added=[AddedToken("word", single_word=True, normalized=False)])
    for behavior in ["merged_with_previous", "merged_with_next", "contiguous"]:
        byte_level("split_" + behavior, splits(r"\s|\p{P}", behavior=behavior))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level("split_removed", splits(r"\s+", behavior="removed", digits=digits))
    byte_level("split_removed_inverted", pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "removed", invert=True), pre_tokenizers.Split(Regex("[aeiou]"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    byte_level("replace_regex", splits(QWEN2), normalizers.Sequence([normalizers.Replace(Regex(r"\s{2,}|\t"), " "), normalizers.Replace(Regex("[‘’‚]"), "\\1'")]))
    byte_level("nfkc_lowercase", splits(QWEN2), normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]))
    byte_level("nfd_strip", splits(QWEN2), normalizers.Sequence([normalizers.NFD(), normalizers.Strip()]))
    byte_level("nfkd_replace", splits(QWEN2), normalizers.Sequence([normalizers.NFKD(), normalizers.Replace("``", "\"")]))


def train_sentencepiece(kind, **options):
    model = io.BytesIO()
    settings = dict(vocab_size=800 if kind == "bpe" else 620, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                    add_dummy_prefix=True, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=0.999, num_threads=1, minloglevel=2)
    settings.update(options)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([line.strip() for line in corpus()]), model_writer=model, model_type=kind, **settings)
    return model.getvalue()


def write_sentencepiece(name, serialized):
    model = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(serialized)
    write_folder(name, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}, model.encode, model.encode, model.decode,
                 lambda t: [model.bos_id()] + model.encode(t))
    return model


def metaspace(model, name, normalizer=None, pre_tokenizer=None, strip=True, added=(), unk=True, byte_fallback=True):
    tokenizer = sentencepiece_to_bpe(model)
    if not byte_fallback:
        spec = json.loads(tokenizer.to_str())
        spec["model"].update(byte_fallback=False, fuse_unk=unk)
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *added])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    write_hf(name, tokenizer)


def make_sentencepiece():
    bpe = write_sentencepiece("spm_bpe", train_sentencepiece("bpe"))
    write_sentencepiece("spm_bpe_no_prefix", train_sentencepiece("bpe", add_dummy_prefix=False))
    write_sentencepiece("spm_bpe_nfkc", train_sentencepiece("bpe", normalization_rule_name="nmt_nfkc"))
    write_sentencepiece("spm_bpe_user_symbols", train_sentencepiece("bpe", user_defined_symbols=["<tool>", "</tool>", "<|three|>"]))
    # With pieces of several spaces, cuts of a run tie; versions of the library break ties differently.
    write_sentencepiece("spm_unigram", train_sentencepiece("unigram", allow_whitespace_only_pieces=False))
    write_sentencepiece("spm_unigram_trims", train_sentencepiece("unigram", remove_extra_whitespaces=True, normalization_rule_name="nmt_nfkc"))

    llama = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    marks = normalizers.Replace(" ", "\u2581")
    metaspace(bpe, "llama2", llama)
    metaspace(bpe, "phi3", llama, added=[AddedToken(t, rstrip=True, normalized=False, special=True) for t in ("<|one|>", "<|two|>")])
    metaspace(bpe, "gemma", marks, pre_tokenizers.Split(" ", "merged_with_previous"), strip=False)
    metaspace(bpe, "unknown_fused", llama, byte_fallback=False)
    metaspace(bpe, "unknown_single", llama, byte_fallback=False, unk=False)
    for scheme in ["always", "first", "never"]:
        for split in [False, True]:
            metaspace(bpe, f"metaspace_{scheme}" + ("_split" if split else ""), pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split),
                      strip=scheme != "never", added=["<|one|>"])


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "torture.json", TORTURE)
    write_json(OUT / "whole.json", {"repeats": WHOLE_REPEATS, "separator": "\n"})
    make_byte_level()
    make_sentencepiece()
