"""Trains the model: `python tools/train/train.py --preset cpu --text BOOKS --work FOLDER`. Goes on from the last checkpoint.

Every step draws its data from a generator seeded by the step's number, so that a run that was stopped goes on as if it had not been.
"""

import argparse
import concurrent.futures
import json
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F

import config
import data
import evaluate
import model as llama
import muon
import tasks


def schedule(preset):
    """The phase of every step."""
    return [phase for phase in preset.phases for _ in range(phase.n_tokens // phase.batch_tokens)]


def rate(preset, step, n_steps):
    """The share of the peak learning rate: a short rise, flat, and a linear fall."""
    rise = min(1.0, (step + 1) / preset.warmup_steps)
    fall = min(1.0, (n_steps - step) / max(1, n_steps * preset.decay_share))
    return rise * max(preset.final_lr_share, fall)


class Trainer:
    def __init__(self, preset, folder, device):
        self.preset, self.folder, self.device = preset, folder, device
        torch.manual_seed(1)
        self.model = llama.Llama(preset).to(device)
        matrices, rest = llama.matrices_and_rest(self.model)
        self.optimizers = {
            "muon": muon.Muon(matrices, lr=preset.muon_lr),
            "adam": torch.optim.AdamW(rest, lr=preset.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        }
        self.peaks = {"muon": preset.muon_lr, "adam": preset.adam_lr}
        self.phases = schedule(preset)
        self.step = 0
        self.hidden = self.model.hidden_rotated
        if preset.compiled:
            self.hidden = torch.compile(self.hidden, dynamic=False)

    def save(self):
        state = {"model": self.model.state_dict(), "step": self.step}
        state |= {name: o.state_dict() for name, o in self.optimizers.items()}
        torch.save(state, self.folder / "checkpoint.partial")
        (self.folder / "checkpoint.partial").rename(self.folder / "checkpoint.pt")

    def load(self):
        state = torch.load(self.folder / "checkpoint.pt", map_location=self.device)
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        self.step = state["step"]

    def loss_sum(self, inputs, targets, positions, weights):
        """The sum of the weighted losses, the losses and the weights of the positions that have one; only those pass the output matrix."""
        weights = weights.flatten()
        kept = weights.nonzero().squeeze(1)
        # Few different sizes: oneDNN keeps a compiled kernel of each size it has met.
        padding = (0, -len(kept) % 512)
        weights, kept = F.pad(weights[kept], padding), F.pad(kept, padding)
        rotations = self.model.rotations(positions)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            logits = self.model.logits(self.hidden(inputs, *rotations).flatten(0, 1)[kept])
        losses = F.cross_entropy(logits.float(), targets.flatten()[kept], reduction="none")
        return (losses * weights).sum(), losses.detach(), weights

    def train_step(self, batch):
        """One optimiser step; returns the mean losses of book text, of answers and copies, and of the values in answers."""
        phase = self.phases[self.step]
        batch = [torch.from_numpy(part).to(self.device) for part in batch]
        total = batch[3].sum()
        n_rows = max(1, phase.micro_tokens // phase.window_tokens)
        seen, seen_weights = [], []
        for begin in range(0, len(batch[0]), n_rows):
            loss, losses, weights = self.loss_sum(*(part[begin : begin + n_rows] for part in batch))
            (loss / total).backward()
            seen.append(losses)
            seen_weights.append(weights)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        share = rate(self.preset, self.step, len(self.phases))
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.peaks[name] * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        losses, weights = torch.cat(seen), torch.cat(seen_weights)
        mean = lambda chosen: float(losses[chosen].mean()) if chosen.any() else float("nan")
        return [mean(weights == kind) for kind in (tasks.BOOK, tasks.ANSWER, tasks.VALUE)]


def make_batch(maker, phases, step):
    phase = phases[step]
    rng = np.random.default_rng([1, step])
    return maker.batch(rng, phase.batch_tokens // phase.window_tokens, phase.window_tokens, phase.task_share)


def run(preset, folder, text_folder, device, eval_minutes, log):
    tokenizer = data.prepare(text_folder, folder, preset.vocab_size)
    books = data.PackedBooks(folder, "train")
    maker = tasks.TaskMaker(tokenizer, books, preset.max_position, preset.book_loss_share)
    trainer = Trainer(preset, folder, device)
    if (folder / "checkpoint.pt").exists():
        trainer.load()
        log(event="resume", step=trainer.step)
    n_steps = len(trainer.phases)
    saved, began, n_tokens, window = time.monotonic(), time.monotonic(), 0, []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(make_batch, maker, trainer.phases, trainer.step) if trainer.step < n_steps else None
        while trainer.step < n_steps:
            batch = upcoming.result()
            phase = trainer.phases[trainer.step]
            if trainer.step + 1 < n_steps:
                upcoming = pool.submit(make_batch, maker, trainer.phases, trainer.step + 1)
            window.append(trainer.train_step(batch))
            n_tokens += phase.batch_tokens
            if trainer.step % 20 == 0 or trainer.step == n_steps:
                losses = dict(zip(("book", "answer", "value"), np.nanmean(np.array(window), axis=0)))
                speed = n_tokens / (time.monotonic() - began)
                log(step=trainer.step, n_steps=n_steps, window=phase.window_tokens, **losses, tokens_per_s=speed)
                began, n_tokens, window = time.monotonic(), 0, []
            if trainer.step == n_steps or time.monotonic() - saved > 60 * eval_minutes:
                trainer.save()
                longest = 8 * phase.window_tokens
                log(step=trainer.step, **evaluate.quick(trainer.model, tokenizer, folder, device, longest))
                saved, began, n_tokens = time.monotonic(), time.monotonic(), 0
    return trainer.model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=config.PRESETS, default="cpu")
    parser.add_argument("--text", required=True, help="folder with the books: books-*.tar.xz, or train/*.txt and valid/*.txt")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for tokens, checkpoints and the log")
    parser.add_argument("--eval-minutes", type=float, default=5, help="time between checkpoints, each with a short evaluation")
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def log(**entry):
        entry = {k: round(v, 4) if isinstance(v, float) else v for k, v in entry.items()}
        line = json.dumps({"time": time.strftime("%H:%M:%S"), **entry})
        print(line, flush=True)
        with open(arguments.work / "log.jsonl", "a") as out:
            out.write(line + "\n")

    run(config.PRESETS[arguments.preset], arguments.work, arguments.text, device, arguments.eval_minutes, log)


if __name__ == "__main__":
    main()
