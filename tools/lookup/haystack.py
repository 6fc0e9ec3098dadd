#!/usr/bin/env python3
"""Makes haystacks for models/lookup: filler sentences with planted "The code of ... is #123456789." lines.

    python3 tools/lookup/haystack.py --tokens 131072 --depth 0.5 --seed 1      (prompt to stdout)

Every word of the filler is one token of the model, so lengths are exact by construction. Standard
library only.
"""

import argparse
import os
import random
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import words  # noqa: E402

PARAGRAPH_SENTENCES = 24
QUESTION_TOKENS = 7    # The code of <adjective> <noun> is #
STATEMENT_TOKENS = 11  # ... 123 456 789 .


@dataclass(frozen=True)
class Haystack:
    prompt: str          # ends with the question
    answer: str          # nine digits
    n_tokens: int        # of the prompt, beginning-of-text included


def sentence(rng):
    """Words of one filler sentence; with its full stop it has len + 1 tokens."""
    noun_phrase = lambda: [rng.choice(words.DETERMINERS), rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS)]
    parts = [rng.choice(words.OPENERS[:12]), rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS)]
    if rng.random() < 0.3:
        parts.append(rng.choice(words.ADVERBS))
    parts += [rng.choice(words.VERBS)] + noun_phrase()
    for _ in range(rng.randrange(3)):
        parts += [rng.choice(words.PREPOSITIONS)] + noun_phrase()
    return parts


def _filler(rng, n_tokens):
    """Sentences of n_tokens tokens in all, full stops included. The last one, a list of nouns, fits exactly."""
    sentences = []
    while n_tokens > 0:
        parts = sentence(rng)
        if n_tokens - len(parts) - 1 < 3:
            parts = ["The"] + [rng.choice(words.NOUNS) for _ in range(n_tokens - 2)]
        sentences.append(" ".join(parts))
        n_tokens -= len(parts) + 1
    return sentences


def make_haystack(n_tokens, depth, seed, n_distractors=4):
    """A prompt of exactly n_tokens tokens (at least 128): filler, the key planted at `depth` (0 = start,
    1 = right before the question), `n_distractors` other keys at random depths, and the question at the end."""
    if n_tokens < 128:
        raise ValueError(f"a haystack needs at least 128 tokens, got {n_tokens}")
    rng = random.Random(seed)
    n_keys = n_distractors + 1
    numbers = rng.sample(range(1000), 3 * n_keys)
    codes = ["".join(f"{n:03d}" for n in numbers[3 * i:3 * i + 3]) for i in range(n_keys)]
    questions = [f"The code of {rng.choice(words.ADJECTIVES)} {noun} is #" for noun in rng.sample(words.NOUNS, n_keys)]

    sentences = _filler(rng, n_tokens - 1 - QUESTION_TOKENS - n_keys * STATEMENT_TOKENS)
    n_filler = len(sentences)
    places = [round(depth * n_filler)] + [rng.randrange(n_filler + 1) for _ in range(n_distractors)]
    # From the back, so that earlier places stay valid.
    for place, key in sorted(zip(places, range(n_keys)), reverse=True):
        sentences.insert(place, questions[key] + codes[key])
    sentences.append(questions[0])
    paragraphs = [". ".join(sentences[n:n + PARAGRAPH_SENTENCES])
                  for n in range(0, len(sentences), PARAGRAPH_SENTENCES)]
    return Haystack(".\n".join(paragraphs), codes[0], n_tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--depth", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    haystack = make_haystack(args.tokens, args.depth, args.seed)
    sys.stdout.write(haystack.prompt)
    print(f"answer: {haystack.answer}", file=sys.stderr)


if __name__ == "__main__":
    main()
