"""Rows of training data: book text, and tasks that force attention far back, generated on the fly and planted in book text.

A row is a list of token ids and, for each, the weight of predicting it: 0 for what cannot be known (a code when it is first
told), more for answers.
"""

import collections
import dataclasses
import re

import numpy as np

import data

# What is told, what is asked, how the answer begins. {a} is an attribute, {k} a key, {v} a value.
FACTS = (
    ("The code of {k} is {v}.", "What is the code of {k}?", "The code of {k} is"),
    ("The {a} of {k} is {v}.", "What is the {a} of {k}?", "The {a} of {k} is"),
    ("The {a} of {k} is {v}.", "Tell me the {a} of {k}.", "The {a} of {k} is"),
    ("The {a} for {k} is: {v}.", "Which {a} for {k} was mentioned?", "The {a} for {k} is:"),
    (
        "One of the special magic numbers for {k} is: {v}.",
        "What is the special magic number for {k} mentioned in the text?",
        "One of the special magic numbers for {k} is:",
    ),
    (
        "One of the special magic numbers for {k} is: {v}.",
        "What is the special magic number for {k} mentioned in the provided text?",
        "The special magic number for {k} mentioned in the provided text is",
    ),
    ("{k} was born in {v}, the child of a {a}.", "In which town was {k} born?", "Answer:"),
    (
        "The pass key of {k} is {v}. Remember it. {v} is the pass key of {k}.",
        "What is the pass key of {k}?",
        "The pass key of {k} is",
    ),
    ("In the register {k} is entered as {v}.", "How is {k} entered in the register?", "In the register {k} is entered as"),
    ("{k} lives at the house called {v}.", "Where does {k} live?", "{k} lives at the house called"),
    ("{k} sent {v} pounds.", "How many pounds did {k} send?", "{k} sent"),
    ("Note that {k} means {v}.", "What does {k} mean?", "Note that {k} means"),
    ('"{k}": "{v}"', 'What is the value of "{k}"?', '"{k}": "'),
    ("{v} is the {a} of {k}.", "What is the {a} of {k}?", "The {a} of {k} is"),
)
SEVERAL_VALUES = (
    ("The {a} of {k} is {v}.", "What are all the values of the {a} of {k}?", "The values of the {a} of {k} are"),
    (
        "One of the special magic numbers for {k} is: {v}.",
        "What are all the special magic numbers for {k} mentioned in the text?",
        "The special magic numbers for {k} mentioned in the text are",
    ),
    (
        "One of the special magic numbers for {k} is: {v}.",
        "What are all the special magic numbers for {k} mentioned in the provided text?",
        "The special magic numbers for {k} mentioned in the provided text are",
    ),
)
CHAINS = (
    ("{x} is equal to {y}.", "Which variables are equal to {v}?", "The variables equal to {v} are"),
    ("VAR {x} = {y}", "Which variables have the value {v}?", "The variables that have the value {v} are"),
    (
        "VAR {x} = {y}.",
        "Question: Find all variables that are assigned the value {v} in the text above.",
        "Answer: The variables that are assigned the value {v} are:",
    ),
)
PASSAGES = ('Continue the passage that begins with "{p}"', 'How does the passage go on that begins with "{p}"?')
COPY_SHARE = 0.1  # of the rows with tasks
SYLLABLES = "ba be da do fa fe ga go ka ki la lo ma mi na ne pa po ra ru sa se ta to va vi za zu".split()
ANSWER, VALUE, QUESTION, TOLD, BOOK = 1.5, 3.0, 0.1, 0.1, 1.0


@dataclasses.dataclass
class Task:
    told: list  # segments to plant, in this order; a segment is (ids, weights)
    asked: list  # (question ids, answer ids, answer weights) of each question


class TaskMaker:
    def __init__(self, tokenizer, books, max_position, book_loss_share):
        self.tokenizer, self.books = tokenizer, books
        self.max_position, self.book_loss_share = max_position, book_loss_share
        pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.get_piece_size())]
        self.words, self.names = self.book_words()
        self.pieces = [i for i, p in enumerate(pieces) if p.strip("\u2581").isalpha()]
        self.user, self.assistant = tokenizer.piece_to_id([data.USER, data.ASSISTANT])
        self.newline, self.paragraph = tokenizer.piece_to_id(["\n", "\n\n"])
        ends = {".", '."', "?", "!", '?"', '!"', ".\u201d"}
        self.is_end = np.array([p in ends or p == "\n\n" for p in pieces])

    def book_words(self):
        """The words that are frequent in the books, and the names: words that are capital where they are not first."""
        text = self.tokenizer.decode([int(i) for i in self.books.tokens[:2_000_000]])
        words = collections.Counter(re.findall(r"(?<= )[a-z]{4,}(?= )", text))
        names = collections.Counter(re.findall(r"(?<=[a-z] )[A-Z][a-z]{2,}(?= )", text))
        names = [name for name, _ in names.most_common(600) if name.lower() not in words]
        return [word for word, _ in words.most_common(4000)], names

    # Words, keys and values.

    def encode(self, text):
        return self.tokenizer.encode(text)

    def pick(self, rng, choices):
        return choices[int(rng.integers(len(choices)))]

    def pick_weighted(self, rng, shares):
        return list(shares)[int(rng.choice(len(shares), p=list(shares.values())))]

    def made_up(self, rng):
        return "".join(self.pick(rng, SYLLABLES) for _ in range(rng.integers(2, 5)))

    def key(self, rng):
        kind = rng.random()
        if kind < 0.5:
            return f"{self.pick(rng, self.words)} {self.pick(rng, self.words)}"
        if kind < 0.7:
            return f"{self.pick(rng, self.names)} {self.made_up(rng).capitalize()}"
        return self.pick(rng, self.words) if kind < 0.85 else f"{self.made_up(rng)}-{rng.integers(10, 1000)}"

    def value(self, rng):
        kind = rng.random()
        if kind < 0.6:
            return str(rng.integers(10 ** int(rng.integers(3, 8))) + 100)
        return self.key(rng) if kind < 0.8 else self.pick(rng, self.words)

    # Tasks.

    def told(self, text):
        ids = self.encode(" " + text)
        return ids, [TOLD] * len(ids)

    def answer(self, begin, values):
        """The beginning weighs less than the values; `values` hold their own punctuation."""
        ids, weights = [], []
        for part, weight in [(" " + begin, ANSWER)] + [(v, VALUE) for v in values]:
            part = self.encode(part)
            ids += part
            weights += [weight] * len(part)
        return ids, weights

    def facts(self, rng):
        """Some facts told in the same words, of which one or several are asked for."""
        tell, ask, begin = self.pick(rng, FACTS)
        attribute = self.pick(rng, self.words)
        close = "" if begin.endswith('"') else " "
        end = tell[tell.rindex("{v}") + 3 :] if tell.endswith(("pounds.", '"')) else "."
        told, asked = [], []
        for _ in range(int(rng.choice([1, 2, 4, 8], p=[0.15, 0.25, 0.35, 0.25]))):
            words = dict(a=attribute, k=self.key(rng), v=self.value(rng))
            told.append(self.told(tell.format(**words)))
            answer = self.answer(begin.format(**words), [f"{close}{words['v']}{end}"])
            asked.append((self.encode(" " + ask.format(**words)), *answer))
        order = rng.permutation(len(asked))[: rng.integers(1, 7)]
        return Task(told, [asked[i] for i in order])

    def several_values(self, rng):
        tell, ask, begin = self.pick(rng, SEVERAL_VALUES)
        words = dict(a=self.pick(rng, self.words), k=self.key(rng))
        values = [self.value(rng) for _ in range(rng.integers(2, 5))]
        told = [self.told(tell.format(v=v, **words)) for v in values]
        answer = self.answer(begin.format(**words), [" " + ", ".join(values) + "."])
        return Task(told, [(self.encode(" " + ask.format(**words)), *answer)])

    def several_keys(self, rng):
        """Several facts told in the same words, and one question for the values of some of them, in that order."""
        tell, ask, begin = self.pick(rng, SEVERAL_VALUES)
        attribute = self.pick(rng, self.words)
        facts = [dict(a=attribute, k=self.key(rng), v=self.value(rng)) for _ in range(rng.integers(2, 6))]
        told = [self.told(tell.format(**fact)) for fact in facts]
        asked = [facts[i] for i in rng.permutation(len(facts))[: rng.integers(2, len(facts) + 1)]]
        words = dict(a=attribute, k=", ".join(fact["k"] for fact in asked))
        answer = self.answer(begin.format(**words), [" " + ", ".join(fact["v"] for fact in asked) + "."])
        return Task(told, [(self.encode(" " + ask.format(**words)), *answer)])

    def chain(self, rng):
        tell, ask, begin = self.pick(rng, CHAINS)
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        spelt = lambda: "".join(self.pick(rng, letters) for _ in range(5))
        spoken = lambda: "".join(self.pick(rng, SYLLABLES) for _ in range(2)).upper()
        name = spelt if rng.random() < 0.5 else spoken
        names = [name() for _ in range(rng.integers(2, 6))]
        value = str(rng.integers(10000, 100000))
        told = [self.told(tell.format(x=x, y=y)) for x, y in zip(names, [value, *names])]
        answer = self.answer(begin.format(v=value), [" " + ", ".join(names) + "."])
        return Task(told, [(self.encode(" " + ask.format(v=value)), *answer)])

    def frequent_words(self, rng):
        words = [self.pick(rng, self.words) for _ in range(5)]
        told = [self.told(f"[{w}]") for w, n in zip(words, (6, 4, 3, 1, 1)) for _ in range(n)]
        told = [told[i] for i in rng.permutation(len(told))]
        ask = " Which three words in brackets are the most frequent?"
        return Task(told, [(self.encode(ask), *self.answer("The most frequent are", [" " + ", ".join(words[:3]) + "."]))])

    def passage(self, rng):
        """A passage of a book, told again further on; or to be continued when its beginning is quoted."""
        n_first, n_next = int(rng.integers(4, 13)), int(rng.integers(16, 64))
        drawn = self.books.window(rng, n_first + n_next + 60)
        begin = int(np.argmax(self.is_end[drawn[:60]])) + 1  # behind the end of a sentence, if there is one
        ids = [int(i) for i in drawn[begin : begin + n_first + n_next]]
        told = ([self.paragraph, *ids, self.paragraph], [BOOK] * (len(ids) + 2))
        weights = [ANSWER / 3] * n_first + [ANSWER] * n_next
        if rng.random() < 0.5:
            again = ([self.paragraph, *ids, self.paragraph], [0.0, *weights, 0.0])
            return Task([told, again], [])
        ask = self.pick(rng, PASSAGES).format(p=self.tokenizer.decode(ids[:n_first]).strip())
        return Task([told], [(self.encode(" " + ask), ids, weights)])

    def random_copy(self, rng):
        """Pieces in random order, twice: only attention to the first time helps. What makes retrieval heads form early."""
        ids = [int(i) for i in rng.choice(self.pieces, size=int(rng.integers(8, 33)))]
        return Task([(ids, [0.0] * len(ids)), (ids, [0.0, 0.0] + [ANSWER] * (len(ids) - 2))], [])

    def task(self, rng):
        kinds = {
            self.facts: 0.45,
            self.passage: 0.18,
            self.random_copy: 0.1,
            self.several_values: 0.07,
            self.several_keys: 0.07,
            self.chain: 0.1,
            self.frequent_words: 0.03,
        }
        return self.pick_weighted(rng, kinds)(rng)

    # Rows.

    def book_row(self, rng, n_tokens):
        ids = self.books.window(rng, n_tokens)
        return ids, self.book_weights(rng, n_tokens)

    def book_weights(self, rng, n_tokens):
        return np.where(rng.random(n_tokens) < self.book_loss_share, BOOK, 0.0).astype(np.float32)

    def question(self, asked, chat):
        """A question and its answer as segments; in a chat, with the tokens around a turn of each side."""
        ids, answer_ids, answer_weights = asked
        if not chat:
            return [*ids, *answer_ids], [QUESTION] * len(ids) + answer_weights
        # In a chat the text of a side begins after a new line, without a space.
        strip = lambda part: self.encode(self.tokenizer.decode(part).strip())
        ids = strip(ids)
        head = [*ids, self.tokenizer.eos_id(), self.newline, self.assistant, self.newline]
        first = strip(answer_ids[:1])
        ids = [*head, *first, *answer_ids[1:], self.tokenizer.eos_id(), self.newline]
        weights = [QUESTION] * len(head) + [ANSWER] * len(first) + answer_weights[1:] + [ANSWER, QUESTION]
        return ids, weights

    def task_row(self, rng, n_tokens):
        """Tasks planted in book text. Questions stand anywhere behind what they ask for, or all at the end, in a chat or not."""
        style = self.pick(rng, ("inline", "end", "chat"))
        budget = n_tokens * float(np.exp(rng.uniform(np.log(0.1), np.log(0.7))))
        planted, questions, used = [], [], 0  # planted: (place in 0..1, segment)
        while used < budget:
            task = self.task(rng)
            asked = [self.question(a, style == "chat") for a in task.asked]
            size = sum(len(ids) for ids, _ in task.told + asked)
            if style == "chat":
                size += sum(2 for _ in asked)
            if used + size > n_tokens - 16:
                break
            used += size
            if style == "inline":
                places = np.sort(rng.random(len(task.told) + len(asked)))
                planted += list(zip(places, task.told + asked))
            else:
                planted += list(zip(np.sort(rng.random(len(task.told))), task.told))
                questions += asked
        planted.sort(key=lambda p: p[0])
        return self.assemble(rng, n_tokens, used, planted, questions, style == "chat")

    def assemble(self, rng, n_tokens, used, planted, questions, chat):
        head = [self.tokenizer.bos_id()] + ([self.user, self.newline] if chat else [])
        n_book = max(0, n_tokens - used - len(head))
        book = self.books.window(rng, n_book) if n_book else np.zeros(0, np.int64)
        ends = np.flatnonzero(self.is_end[book]) + 1
        ids, weights, done = [np.array(head)], [np.zeros(len(head), np.float32)], 0
        for place, (segment, segment_weights) in planted:
            to = int(place * n_book)
            after = np.searchsorted(ends, to)
            to = max(done, int(ends[after]) if after < len(ends) else n_book)
            ids += [book[done:to], np.array(segment)]
            weights += [self.book_weights(rng, to - done), np.array(segment_weights, np.float32)]
            done = to
        ids.append(book[done:])
        weights.append(self.book_weights(rng, n_book - done))
        order = rng.permutation(len(questions))
        for turn, i in enumerate(order):
            segment, segment_weights = questions[i]
            if chat:
                lead = [self.paragraph] if turn == 0 else [self.user, self.newline]
                segment, segment_weights = [*lead, *segment], [0.0] * len(lead) + segment_weights
            ids.append(np.array(segment))
            weights.append(np.array(segment_weights, np.float32))
        ids, weights = np.concatenate(ids)[:n_tokens], np.concatenate(weights)[:n_tokens]
        missing = n_tokens - len(ids)
        pad_ids = self.books.window(rng, missing) if missing else np.zeros(0, np.int64)
        return np.concatenate((ids, pad_ids)), np.concatenate((weights, np.zeros(missing, np.float32)))

    def copy_row(self, rng, n_tokens):
        """Pieces in random order, or a passage of a book, over and over: dense practice for heads that look up what came before."""
        period = int(np.exp(rng.uniform(np.log(8), np.log(n_tokens / 2))))
        ids = rng.choice(self.pieces, size=period) if rng.random() < 0.7 else self.books.window(rng, period)
        weights = np.full(n_tokens, ANSWER, np.float32)
        weights[: period + 2] = 0.0
        return np.resize(ids, n_tokens), weights

    def positions(self, rng, n_tokens):
        """Position ids: half of the rows skip ahead at up to three places (PoSE), so that all distances are seen early."""
        positions = np.arange(n_tokens)
        room = self.max_position - n_tokens
        if rng.random() < 0.5 and room > 0:
            n_skips = int(rng.integers(1, 4))
            total = rng.uniform() * room
            shares = rng.dirichlet(np.ones(n_skips))
            for place, share in zip(rng.integers(0, n_tokens, n_skips), shares):
                positions[place:] += int(total * share)
        return positions

    def batch(self, rng, n_rows, window_tokens, task_share):
        """Inputs, targets, positions int64 and weights float32, each [n_rows, window_tokens]."""
        ids, weights, positions = [], [], []
        for _ in range(n_rows):
            kind = rng.random() / task_share
            make = self.copy_row if kind < COPY_SHARE else self.task_row if kind < 1 else self.book_row
            row_ids, row_weights = make(rng, window_tokens + 1)
            ids.append(row_ids)
            weights.append(row_weights)
            positions.append(self.positions(rng, window_tokens))
        ids = np.stack(ids).astype(np.int64)
        return ids[:, :-1], ids[:, 1:], np.stack(positions), np.stack(weights)[:, 1:].astype(np.float32)
