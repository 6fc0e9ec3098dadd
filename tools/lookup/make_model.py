#!/usr/bin/env python3
"""Writes models/lookup: a Llama checkpoint whose weights are constructed, not trained.

    python3 tools/lookup/make_model.py [OUT_DIR]        (standard library only, deterministic)

The model answers "The code of <adjective> <noun> is #" by finding the same words earlier in the prompt
and copying what followed them, at any distance up to a million tokens. How each head works is
explained in models/lookup/README.md; the letters here are the same. Every number below is either a
design constant or derived from one, so the margins can be checked by hand (see `margins`).
"""

import json
import math
import os
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import words  # noqa: E402

# ---- shape -------------------------------------------------------------------------------------
LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, VOCAB = 3, 4, 2, 64, 128, 64, 2048
MAX_POSITIONS = (1 << 20) + (1 << 16)
ROPE_THETA = 1e24  # pair f turns by 10^(-0.75 f) rad per token
PAIRS = HEAD_DIM // 2
N_POSITIONAL = 9   # pairs 0..8 tell distances apart; pairs 9..31 turn < 0.2 rad in a million tokens
CODE = 15          # bits of a token's code word

# ---- residual stream (E = 128): named slots -------------------------------------------------------
CUR, PREV, OUT, SCRATCH = 0, (15, 30, 45), 60, 75      # 15 wide each; SCRATCH is 15 wide per head
CONST, TRIGGER, MARKER, BOS_FLAG, PAD = 120, 121, 122, 123, 124
PREV_PAD = (125, 126, 127)
# BOS has no code; PAD holds sqrt(15) instead, and is copied like a code. So |x|^2 is the same for every token:
NORM0_SQ = CODE + 1 + 3         # code or pad, constant, three flags
NORM1_SQ = NORM0_SQ + 3 * CODE  # after layer 0 wrote the codes of the three previous tokens

# ---- vocabulary --------------------------------------------------------------------------------
BOS, EOS, IM_START, IM_END = "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"
SPECIALS = [BOS, EOS, IM_START, IM_END]
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_to_char():
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + n)
    return table


BYTE_CHAR = byte_to_char()


def encoded(text):
    return "".join(BYTE_CHAR[b] for b in text.encode())


def vocabulary():
    """-> (list of 2048 encoded pieces, merges). Bytes, three-digit numbers, words, letter pairs."""
    pieces = [BYTE_CHAR[b] for b in range(256)]
    pieces += [f"{n:03d}" for n in range(1000)]
    pieces += [encoded(text) for text in (" #", ".\n")]
    listed = (words.ADJECTIVES + words.NOUNS + words.VERBS + words.ADVERBS + words.PREPOSITIONS
              + words.DETERMINERS + words.FUNCTION)
    pieces += [encoded(" " + word) for word in dict.fromkeys(listed)]
    pieces += [encoded(space + word) for word in words.OPENERS for space in ("", " ")]
    pieces = list(dict.fromkeys(pieces))
    merges = []
    # Text in other words falls back to bytes and, for what room is left, frequent English pairs.
    pairs = """th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de
               hi ri ro ic ne ea ra ce li ch ll be ma si om ur""".split()
    known = set(pieces)
    for pair in pairs:
        if len(pieces) + len(SPECIALS) == VOCAB:
            break
        if pair not in known:
            pieces.append(pair)
            merges.append(f"{pair[0]} {pair[1]}")
    n = 0
    while len(pieces) + len(SPECIALS) < VOCAB:
        pieces.append(f"<|reserved_{n}|>")
        n += 1
    assert len(set(pieces)) == len(pieces) == VOCAB - len(SPECIALS), len(pieces)
    return pieces + SPECIALS, merges


def code_word(token_id):
    """[15, 11, 3] Hamming code word of an 11-bit id as +-1: the dot product of two different ones is at most 9."""
    bits = [0] * 16
    data_places = [p for p in range(1, 16) if p & (p - 1)]
    for n, place in enumerate(data_places):
        bits[place] = (token_id >> n) & 1
    for parity in (1, 2, 4, 8):
        bits[parity] = sum(bits[p] for p in range(1, 16) if p & parity and p != parity) & 1
    return [1.0 - 2.0 * b for b in bits[1:]]


# ---- tensors -----------------------------------------------------------------------------------
def zeros(rows, columns):
    return [[0.0] * columns for _ in range(rows)]


def embedding(pieces):
    table = zeros(VOCAB, HIDDEN)
    triggers = {encoded(" #")} | {f"{n:03d}" for n in range(1000)}
    for token, piece in enumerate(pieces):
        row = table[token]
        if piece == BOS:
            row[PAD] = math.sqrt(CODE)  # no code: lookups that find nothing rest here and copy nothing
        else:
            row[CUR:CUR + CODE] = code_word(token)
        row[CONST] = 1.0
        row[TRIGGER] = 1.0 if piece in triggers else -1.0
        row[MARKER] = 1.0 if piece == encoded(".\n") else -1.0
        row[BOS_FLAG] = 1.0 if piece == BOS else -1.0
    return table


def rate(pair):
    return ROPE_THETA ** (-pair / PAIRS)


SLOW = [f for f in range(N_POSITIONAL, PAIRS)]
CONTENT = SLOW + [f + PAIRS for f in SLOW]       # 46 dimensions that hardly turn
FLAG_A, FLAG_B = PAIRS - 1, HEAD_DIM - 1         # the slowest pair: 45 content dimensions remain + 1
CODE_DIMS = [d for d in CONTENT if d != FLAG_B]  # 45: three code words
SQRT_SCALE = math.sqrt(math.sqrt(HEAD_DIM))      # q and k are both larger by this: logits are as named

# Logits (natural log) in the softmax.
NEIGHBOUR = [55.0, 30.0] + [20.0] * 7  # amplitude of pair f in the previous-token heads
MATCH = 3.5                            # per agreeing code bit; a full match of three tokens is 45 * 3.5
REST = 42 * MATCH                      # the sink of the lookup head: below 45, above 39 matching bits
REST_UNTRIGGERED = 60 * MATCH          # rows that look nothing up
SINK = 40.0
STRIPE, STRIPE_SINK = 24.0, 18.0
# Pair -> amplitude. The slow pairs keep distances that are multiples of a fast pair's period away.
LOCAL = {3: 10.0, 4: 20.0, 5: 20.0, 6: 20.0, 7: 20.0, 8: 20.0}  # a soft window of some hundred tokens
RECENT = {5: 6.0, 6: 10.0, 7: 10.0, 8: 10.0}                    # paragraph marks of the last 5000 tokens


def set_positional(q_rows, k_rows, amplitude, offset):
    """cos(rate * (i - j) - rate * offset) * amplitude: largest for the key `offset` tokens back."""
    for pair, value in amplitude.items():
        root = math.sqrt(value) * SQRT_SCALE
        angle = -rate(pair) * offset
        q_rows[pair][CONST] = root * math.cos(angle)
        q_rows[pair + PAIRS][CONST] = root * math.sin(angle)
        if k_rows is not None:
            k_rows[pair][CONST] = root


def layer0():
    """Heads 0, 1, 2 copy the code of the token 1, 2, 3 back into PREV; head 3 rests on BOS (a sink)."""
    q = [zeros(HEAD_DIM, HIDDEN) for _ in range(HEADS)]
    k = [zeros(HEAD_DIM, HIDDEN) for _ in range(KV_HEADS)]
    v = [zeros(HEAD_DIM, HIDDEN) for _ in range(KV_HEADS)]
    o = zeros(HIDDEN, HEADS * HEAD_DIM)
    amplitude = dict(enumerate(NEIGHBOUR))
    for head in range(3):
        set_positional(q[head], k[head // 2], amplitude, offset=head + 1)
        for bit in range(CODE):
            o[PREV[head] + bit][head * HEAD_DIM + bit] = 1.0
        o[PREV_PAD[head]][head * HEAD_DIM + CODE] = 1.0
    k[1][FLAG_A][BOS_FLAG] = k[1][FLAG_A][CONST] = 0.5 * math.sqrt(SINK) * SQRT_SCALE
    q[3][FLAG_A][CONST] = math.sqrt(SINK) * SQRT_SCALE
    for bit in range(CODE):
        o[SCRATCH + bit][3 * HEAD_DIM + bit] = 1.0  # copies BOS's code, which is zero
        for kv_head in range(KV_HEADS):
            v[kv_head][bit][CUR + bit] = 1.0
    for kv_head in range(KV_HEADS):
        v[kv_head][CODE][PAD] = 1.0
    return q, k, v, o


def layer1():
    """Head 0 looks up, head 1 is local, heads 2 and 3 read the paragraph marks (stripes)."""
    q = [zeros(HEAD_DIM, HIDDEN) for _ in range(HEADS)]
    k = [zeros(HEAD_DIM, HIDDEN) for _ in range(KV_HEADS)]
    v = [zeros(HEAD_DIM, HIDDEN) for _ in range(KV_HEADS)]
    o = zeros(HIDDEN, HEADS * HEAD_DIM)
    # Head 0: query (this token, 1 back, 2 back) against key (1 back, 2 back, 3 back).
    root = math.sqrt(MATCH) * SQRT_SCALE
    for slot, (query_slot, key_slot) in enumerate(zip((CUR, *PREV[:2]), PREV)):
        for bit in range(CODE):
            dim = CODE_DIMS[slot * CODE + bit]
            q[0][dim][query_slot + bit] = root
            k[0][dim][key_slot + bit] = root
    rest_key = math.sqrt(REST) * SQRT_SCALE
    k[0][FLAG_B][BOS_FLAG] = k[0][FLAG_B][CONST] = 0.5 * rest_key
    triggered, untriggered = (level * SQRT_SCALE / math.sqrt(REST) for level in (REST, REST_UNTRIGGERED))
    q[0][FLAG_B][CONST] = 0.5 * (triggered + untriggered)
    q[0][FLAG_B][TRIGGER] = 0.5 * (triggered - untriggered)

    # Head 1 shares head 0's keys and adds distances to them.
    set_positional(q[1], k[0], LOCAL, offset=0)

    # Heads 2 and 3: keys carry the paragraph mark and BOS.
    mark = math.sqrt(STRIPE) * SQRT_SCALE
    k[1][FLAG_A][MARKER] = k[1][FLAG_A][CONST] = 0.5 * mark
    k[1][FLAG_B][BOS_FLAG] = k[1][FLAG_B][CONST] = 0.5 * mark
    for head in (2, 3):
        q[head][FLAG_A][CONST] = mark
        q[head][FLAG_B][CONST] = STRIPE_SINK * SQRT_SCALE / math.sqrt(STRIPE)
    set_positional(q[3], k[1], RECENT, offset=0)

    for bit in range(CODE):
        for kv_head in range(KV_HEADS):
            v[kv_head][bit][CUR + bit] = 1.0
        o[OUT + bit][bit] = 1.0
        for head in (1, 2, 3):
            o[SCRATCH + (head - 1) * CODE + bit][head * HEAD_DIM + bit] = 0.25
    return q, k, v, o


def layer2():
    """All heads rest on BOS and add nothing. Engines compute the last layer only for the rows whose logits are read: what
    the model is there to exercise lies before it."""
    q = [zeros(HEAD_DIM, HIDDEN) for _ in range(HEADS)]
    k = [zeros(HEAD_DIM, HIDDEN) for _ in range(KV_HEADS)]
    for row in k:
        row[FLAG_A][BOS_FLAG] = row[FLAG_A][CONST] = 0.5 * math.sqrt(SINK) * SQRT_SCALE
    for row in q:
        row[FLAG_A][CONST] = math.sqrt(SINK) * SQRT_SCALE
    return q, k, [zeros(HEAD_DIM, HIDDEN) for _ in range(KV_HEADS)], zeros(HIDDEN, HEADS * HEAD_DIM)


LOGIT = 4.0        # per code bit of the copied token: right 15, any other at most 9
NOTHING_FOUND = 12  # bits: EOS wins unless something was copied


def lm_head(pieces):
    table = zeros(VOCAB, HIDDEN)
    for token, piece in enumerate(pieces):
        if piece == EOS:
            table[token][CONST] = LOGIT * NOTHING_FOUND
        elif piece not in SPECIALS:
            table[token][OUT:OUT + CODE] = [LOGIT * bit for bit in code_word(token)]
    return table


def stacked(heads):
    return [row for head in heads for row in head]


def tensors(pieces):
    result = {"model.embed_tokens.weight": embedding(pieces), "lm_head.weight": lm_head(pieces)}
    norms = (NORM0_SQ, NORM1_SQ, NORM1_SQ + CODE)
    for index, (layer, norm_sq) in enumerate(zip((layer0(), layer1(), layer2()), norms)):
        q, k, v, o = layer
        prefix = f"model.layers.{index}."
        result |= {
            prefix + "self_attn.q_proj.weight": stacked(q),
            prefix + "self_attn.k_proj.weight": stacked(k),
            prefix + "self_attn.v_proj.weight": stacked(v),
            prefix + "self_attn.o_proj.weight": o,
            prefix + "mlp.gate_proj.weight": zeros(FFN, HIDDEN),  # the construction needs no FFN
            prefix + "mlp.up_proj.weight": zeros(FFN, HIDDEN),
            prefix + "mlp.down_proj.weight": zeros(HIDDEN, FFN),
            # RMSNorm divides by |x| / sqrt(E); this weight undoes it: the layer sees x itself.
            prefix + "input_layernorm.weight": [math.sqrt(norm_sq / HIDDEN)] * HIDDEN,
            prefix + "post_attention_layernorm.weight": [1.0] * HIDDEN,
        }
    result["model.norm.weight"] = [math.sqrt((NORM1_SQ + CODE) / HIDDEN)] * HIDDEN
    return result


# ---- files -------------------------------------------------------------------------------------
def bf16_bytes(values):
    out = bytearray()
    for value in values:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        out += struct.pack("<H", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF)
    return bytes(out)


def write_safetensors(path, named):
    header, blobs, offset = {}, [], 0
    for name in sorted(named):
        rows = named[name]
        matrix = isinstance(rows[0], list)
        blob = bf16_bytes([x for row in rows for x in row] if matrix else rows)
        header[name] = {"dtype": "BF16", "shape": [len(rows), len(rows[0])] if matrix else [len(rows)],
                        "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    header["__metadata__"] = {"format": "pt"}
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


CHAT_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
                 "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
                 "{% endif %}")


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def tokenizer_json(pieces, merges):
    ids = {piece: token for token, piece in enumerate(pieces)}
    special = lambda text: {"id": ids[text], "content": text, "single_word": False, "lstrip": False,
                            "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    template = lambda *parts: [{"SpecialToken": {"id": BOS, "type_id": 0}},
                               *({"Sequence": {"id": part, "type_id": n}} for n, part in enumerate(parts))]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [special(text) for text in SPECIALS],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False},
            byte_level]},
        "post_processor": {"type": "TemplateProcessing", "single": template("A"), "pair": template("A", "B"),
                           "special_tokens": {BOS: {"id": BOS, "ids": [ids[BOS]], "tokens": [BOS]}}},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": ids, "merges": merges},
    }


def main():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "models", "lookup")
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.normpath(root)
    os.makedirs(out, exist_ok=True)
    pieces, merges = vocabulary()
    ids = {piece: token for token, piece in enumerate(pieces)}
    write_safetensors(os.path.join(out, "model.safetensors"), tensors(pieces))
    write_json(os.path.join(out, "tokenizer.json"), tokenizer_json(pieces, merges))
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "add_bos_token": True,
        "clean_up_tokenization_spaces": False, "model_max_length": MAX_POSITIONS, "chat_template": CHAT_TEMPLATE})
    write_json(os.path.join(out, "generation_config.json"), {
        "bos_token_id": ids[BOS], "eos_token_id": [ids[EOS], ids[IM_END]]})
    write_json(os.path.join(out, "config.json"), {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": ROPE_THETA, "rope_scaling": None,
        "max_position_embeddings": MAX_POSITIONS, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "bos_token_id": ids[BOS], "eos_token_id": ids[EOS]})


if __name__ == "__main__":
    main()
