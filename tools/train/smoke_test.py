"""Runs the whole recipe in small on made-up text: tokenizer, packing, training, going on from a checkpoint, export.

`python3 tools/train/smoke_test.py`, about a minute. Without PyTorch it says so and passes.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
import unittest

try:
    import numpy as np
    import safetensors.torch
    import sentencepiece  # noqa: F401
    import torch
except ImportError as missing:
    print(f"skipped: {missing.name} is not installed (pip install -r tools/train/requirements.txt)")
    sys.exit(0)

import config
import data
import evaluate
import export
import model as llama
import tasks
import train

PRESET = config.PRESETS["smoke"]


def write_books(folder):
    """Books of sentences of made-up words: nothing to learn but which words there are."""
    rng = np.random.default_rng(5)
    words = sorted({"".join(rng.choice(tasks.SYLLABLES, size=3)) for _ in range(400)})
    for split, n_books in (("train", 4), ("valid", 2)):
        (folder / split).mkdir()
        for i in range(n_books):
            sentences = [" ".join([str(n), *rng.choice(words, size=8), "by", "Tom", "and", "Ann"]) + "." for n in range(900)]
            text = "\n\n".join(" ".join(sentences[j : j + 5]) for j in range(0, 900, 5))
            (folder / split / f"{i}.txt").write_text(f"A Book\nby Nobody\n\n{text}\n", encoding="utf-8")


class SmokeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        write_books(cls.folder)
        cls.tokenizer = data.prepare(cls.folder, cls.folder / "work", PRESET.vocab_size)
        books = data.PackedBooks(cls.folder / "work", "train")
        cls.maker = tasks.TaskMaker(cls.tokenizer, books, PRESET.max_position, 0.5)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def run_recipe(self, preset, work):
        entries = []
        model = train.run(preset, work, self.folder, "cpu", 1e9, lambda **entry: entries.append(entry))
        return model, entries

    def test_tokenizer_returns_the_text(self):
        for text in ("The code is 12345.", "a\n\nb\nc  d", "snow \u2603, <|user|> </s> [x] {y} = z"):
            ids = self.tokenizer.encode(text)
            self.assertEqual(self.tokenizer.decode(ids), text)
            self.assertNotIn(self.maker.user, ids)
            self.assertNotIn(self.tokenizer.eos_id(), ids)
        self.assertEqual(self.tokenizer.encode("1234567", out_type=str)[-4:], ["12", "34", "56", "7"])

    def test_rows_have_the_length_asked_for(self):
        for seed in range(60):
            rng = np.random.default_rng(seed)
            n_tokens = int(rng.integers(64, 700))
            ids, weights = self.maker.task_row(rng, n_tokens)
            self.assertEqual((len(ids), len(weights)), (n_tokens, n_tokens))
            self.assertTrue((0 <= ids).all() and (ids < PRESET.vocab_size).all())

    def test_positions_rise_and_stay_below_the_context(self):
        for seed in range(60):
            positions = self.maker.positions(np.random.default_rng(seed), 300)
            self.assertTrue((np.diff(positions) >= 1).all())
            self.assertLess(positions[-1], PRESET.max_position)

    def test_the_answer_of_a_needle_is_told_once_and_asked_at_the_end(self):
        for seed in range(40):
            for chat in (False, True):
                rng = np.random.default_rng(seed)
                ids, begin, n_values = evaluate.needle_prompt(self.maker, rng, 600, 0.3, n_keys=2, chat=chat)
                value = self.tokenizer.decode([int(i) for i in ids[begin : begin + n_values]]).strip()
                self.assertRegex(value, r"^\d{6}\.$")
                self.assertIn(value[:-1], self.tokenizer.decode([int(i) for i in ids[: begin - 20]]))

    def test_training_goes_on_as_if_it_had_not_stopped(self):
        work = self.folder / "work"
        model, entries = self.run_recipe(PRESET, work)
        first = np.log(PRESET.vocab_size)
        valid = entries[-1]["valid"][256]
        self.assertLess(valid, first - 0.5)
        # The same run, stopped after its first phase.
        stopped = self.folder / "stopped"
        stopped.mkdir()
        for path in work.iterdir():
            if path.name != "checkpoint.pt":
                (stopped / path.name).write_bytes(path.read_bytes())
        trainer = train.Trainer(PRESET, stopped, "cpu")
        for step in range(PRESET.phases[0].n_tokens // PRESET.phases[0].batch_tokens):
            trainer.train_step(train.make_batch(self.maker, trainer.phases, step))
        trainer.save()
        resumed, entries = self.run_recipe(PRESET, stopped)
        self.assertEqual(entries[0]["event"], "resume")
        for name, weight in model.state_dict().items():
            self.assertLess(float((weight - resumed.state_dict()[name]).abs().max()), 1e-4, name)

    def test_export(self):
        model = llama.Llama(PRESET)
        path = self.folder / "work" / "tokenizer.model"
        export.export(PRESET, model.state_dict(), self.tokenizer, path, self.folder / "out")
        weights = safetensors.torch.load_file(self.folder / "out" / "model.safetensors")
        self.assertEqual(weights["model.layers.1.self_attn.k_proj.weight"].shape, (64, 128))
        self.assertEqual(len(weights), 2 + 9 * PRESET.n_layers)
        written = json.loads((self.folder / "out" / "config.json").read_text())
        self.assertEqual(written["rope_theta"], PRESET.rope_theta)
        self.assertEqual(written["max_position_embeddings"], PRESET.max_position)

    def test_schedule(self):
        preset = dataclasses.replace(PRESET, warmup_steps=4)
        n_steps = len(train.schedule(preset))
        rates = [train.rate(preset, step, n_steps) for step in range(n_steps)]
        self.assertEqual(max(rates), 1.0)
        self.assertLess(rates[0], 0.5)
        self.assertLess(rates[-1], 0.5)


if __name__ == "__main__":
    unittest.main()
