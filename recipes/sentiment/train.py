"""Train the sentiment model from scratch, on a CPU, in minutes.

The sentences are made from grammar.txt and the VADER lexicon (see corpus.py), the words start from
all-MiniLM-L6-v2 (see vocabulary.py), and the result is a small BERT that any Transformers pipeline can load.
"""

import argparse
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import (
    EVALUATION,
    HERE,
    LABELS,
    Grammar,
    Writer,
    normalised,
    read_evaluation,
    read_lexicon,
    review_words,
    sentences,
)
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from vocabulary import LEAN, SPECIAL, build_tokenizer, choose, initial_embeddings, word_counts

LONGEST = 256
WIDTH = 96
SMALLEST_REMAINDER = 8
SWAPPED = {1: 0.15, 2: 0.08, 3: 0.08}
HIDDEN = 0.01
Encoded = list[tuple[list[int], int]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=HERE / "model", help="folder to write (default: model/ here)"
    )
    parser.add_argument(
        "--sentences", type=int, default=90_000, help="reviews to write and learn (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=4, help="times to learn them (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=7_500, help="vocabulary (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of all chance (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    return parser.parse_args()


def write_corpus(size: int, seed: int) -> tuple[list[tuple[str, int]], dict[str, float], set[str]]:
    """Write the training reviews, and make sure that no held-out sentence is among them."""
    grammar = Grammar.read()
    words = review_words(read_lexicon(), grammar.slots["STOP"])
    held = {normalised(example.sentence) for example in read_evaluation()}
    writer = Writer(grammar, words, held, random.Random(seed))
    texts = writer.corpus(size)
    clash = held & {part for text, _ in texts for part in sentences(text)}
    assert not clash, f"held-out sentences of {EVALUATION.name} are in the training data: {sorted(clash)[:3]}"
    return texts, words, grammar.subjects()


def build_model(tokens: list[str], embeddings: torch.Tensor) -> BertForSequenceClassification:
    """Build a BERT three layers deep whose words already mean something."""
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=embeddings.shape[1],
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=2 * embeddings.shape[1],
        max_position_embeddings=LONGEST,
        pad_token_id=tokens.index("[PAD]"),
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.copy_(embeddings)
    return model


def batches(data: Encoded, size: int, rng: random.Random) -> list[Encoded]:
    """Shuffle, then put texts of like length together, so that little time goes into padding."""
    data = rng.sample(data, len(data))
    chunks = [data[start : start + 50 * size] for start in range(0, len(data), 50 * size)]
    ordered = [row for chunk in chunks for row in sorted(chunk, key=lambda row: len(row[0]))]
    groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    rng.shuffle(groups)
    return [group for group in groups if len(group) >= SMALLEST_REMAINDER]


def pad(rows: Encoded) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn rows of token ids into a padded batch, its mask and its labels."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    return ids, (ids != 0).long(), torch.tensor([label for _, label in rows])


@dataclass
class Swapper:
    """Puts other words in place of some, so that words which no sentence has are learnt too.

    A subject ("film", "soup") gives way to any word that the corpus never uses and that leans to neither
    side; a word of the lexicon gives way to another of its side. Few words are hidden altogether.
    """

    kinds: torch.Tensor
    pools: dict[int, torch.Tensor]

    @classmethod
    def build(
        cls, tokens: list[str], embeddings: torch.Tensor, rated: set[str], subjects: set[str], used: set[str]
    ) -> "Swapper":
        """Sort the tokens: 1 is a subject, 2 and 3 are the sides of the lexicon."""
        leans = (embeddings[:, -1] / LEAN).tolist()
        sides = [2 + (lean > 0) if token in rated else 0 for token, lean in zip(tokens, leans, strict=True)]
        kinds = [1 if token in subjects else side for token, side in zip(tokens, sides, strict=True)]
        plain = [token.isalpha() and len(token) > 3 and token not in used for token in tokens]
        mild = [known and abs(lean) < 0.15 for known, lean in zip(plain, leans, strict=True)]
        pools = {1: [number for number in range(len(tokens)) if mild[number]]}
        for side in (2, 3):
            pools[side] = [number for number, kind in enumerate(kinds) if kind == side]
        return cls(torch.tensor(kinds), {kind: torch.tensor(pool) for kind, pool in pools.items()})

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the batch with some of its words changed."""
        kinds, chance = self.kinds[ids], torch.rand(ids.shape)
        for kind, pool in self.pools.items():
            other = pool[torch.randint(len(pool), ids.shape)]
            ids = torch.where((kinds == kind) & (chance < SWAPPED[kind]), other, ids)
        return ids.masked_fill((chance > 1 - HIDDEN) & (ids >= len(SPECIAL)), SPECIAL.index("[UNK]"))


def learn(model: BertForSequenceClassification, data: Encoded, swap: Swapper, epochs: int, seed: int) -> None:
    """Train; the words move slower than the rest, so that unseen ones stay beside their neighbours."""
    words = model.bert.embeddings.word_embeddings.weight
    rest = [weight for weight in model.parameters() if weight is not words]
    groups = [{"params": [words], "lr": 1e-3}, {"params": rest, "lr": 2e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    rng, size = random.Random(seed), 128
    total = epochs * (len(data) // size + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-3, 2e-3], total_steps=total, pct_start=0.1)
    model.train()
    started, step = time.monotonic(), 0
    for epoch in range(epochs):
        seen = right = 0
        for rows in batches(data, size, rng):
            ids, mask, labels = pad(rows)
            logits = model(input_ids=swap(ids), attention_mask=mask).logits
            functional.cross_entropy(logits, labels, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step < total - 1:
                schedule.step()
            seen, right, step = seen + len(rows), right + int((logits.argmax(1) == labels).sum()), step + 1
            if step % 100 == 0:
                spent = time.monotonic() - started
                where = f"epoch {epoch + 1}/{epochs} step {step}/{total}"
                print(f"{where} right {right / seen:.3f} {spent:.0f} s", flush=True)
    model.eval()


def save(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write beside the place, then rename into it: a reader never sees half a model."""
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    fresh.chmod(0o755)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    old = output.with_name(f".{output.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    (fresh / "model.safetensors").chmod(0o644)
    fresh.rename(output)
    shutil.rmtree(old, ignore_errors=True)
    print(f"wrote {output.name}/: model.safetensors {(output / 'model.safetensors').stat().st_size:,} bytes")


def main() -> None:
    """Write the reviews, learn them, save the model."""
    options = parse()
    started = time.monotonic()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    texts, ratings, subjects = write_corpus(options.sentences, options.seed)
    print(f"{len(texts)} reviews written, {time.monotonic() - started:.0f} s", flush=True)
    tokens = choose([text for text, _ in texts], set(ratings), options.tokens)
    backend = build_tokenizer(tokens)
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    special = {f"{name}_token": token for name, token in names.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LONGEST, **special)
    embeddings = initial_embeddings(tokens, ratings, WIDTH)
    model = build_model(tokens, embeddings)
    weights = sum(weight.numel() for weight in model.parameters())
    print(f"{len(tokens)} tokens, {weights:,} weights, {time.monotonic() - started:.0f} s", flush=True)
    rows = backend.encode_batch([text for text, _ in texts])
    encoded = [(row.ids[:LONGEST], label) for row, (_, label) in zip(rows, texts, strict=True)]
    used = set(word_counts([text for text, _ in texts]))
    swap = Swapper.build(tokens, embeddings, set(ratings), subjects, used)
    learn(model, encoded, swap, options.epochs, options.seed)
    save(model, tokenizer, options.output)
    print(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
