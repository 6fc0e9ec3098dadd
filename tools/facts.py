"""Long English prompts in which facts are told, and a question about each: for models that were trained on
language, such as models/longhaul-mini. The rest of the text is the filler of tools/lookup/haystack.py.

The wordings are some of those that tools/train teaches; names and numbers are made up. Standard library only.
"""

import os
import random
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lookup"))
from haystack import PARAGRAPH_SENTENCES, sentence  # noqa: E402

# What is told, what is asked. {name} is a person, {value} six digits.
WORDINGS = (
    ("The pass key of {name} is {value}. Remember it. {value} is the pass key of {name}",
     "What is the pass key of {name}?"),
    ("In the register {name} is entered as {value}", "How is {name} entered in the register?"),
    ("One of the special magic numbers for {name} is: {value}",
     "What is the special magic number for {name} mentioned in the text?"),
    ("Note that {name} means {value}", "What does {name} mean?"),
)
FIRST_NAMES = "Andrew Anna Boris Denis Helen Mary Natasha Nicholas Peter Sonya".split()
SYLLABLES = "ba be da do fa fe ga go ka ki la lo ma mi na ne pa po ra ru sa se ta to va vi za zu".split()
SAMPLE_SENTENCES = 1000  # are counted to find out how many make a prompt


@dataclass(frozen=True)
class Fact:
    depth: float   # where it is told: 0 = start of the text, 1 = its end
    question: str
    value: str     # the answer has to hold it


@dataclass(frozen=True)
class Story:
    text: str
    facts: tuple

    def prompt(self, fact):
        return f"{self.text}\n\n{fact.question}"


def tell(n_sentences, seed):
    """A Story of so many sentences and the facts between them, one of each wording, in an order of the seed's."""
    rng = random.Random(seed)
    told, facts = [], []
    first_names = rng.sample(FIRST_NAMES, len(WORDINGS))
    for i, (statement, question) in enumerate(rng.sample(WORDINGS, len(WORDINGS))):
        name = f"{first_names[i]} {''.join(rng.choices(SYLLABLES, k=3)).capitalize()}"
        value = str(rng.randrange(100000, 1000000))
        told.append(statement.format(name=name, value=value))
        facts.append(Fact((i + 0.5) / len(WORDINGS), question.format(name=name), value))
    sentences = [" ".join(sentence(rng)) for _ in range(n_sentences)]
    # From the back, so that earlier places stay valid.
    for fact, statement in reversed(list(zip(facts, told))):
        sentences.insert(round(fact.depth * n_sentences), statement)
    paragraphs = [". ".join(sentences[n:n + PARAGRAPH_SENTENCES])
                  for n in range(0, len(sentences), PARAGRAPH_SENTENCES)]
    return Story(".\n".join(paragraphs) + ".", tuple(facts))


def make_story(n_tokens, seed, count_tokens):
    """A Story of about n_tokens tokens; count_tokens(text) asks the model's tokenizer."""
    n_facts, n_sample = (count_tokens(tell(n, seed).text) for n in (0, SAMPLE_SENTENCES))
    return tell(max(0, round((n_tokens - n_facts) * SAMPLE_SENTENCES / (n_sample - n_facts))), seed)
