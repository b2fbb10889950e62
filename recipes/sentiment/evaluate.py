"""Measure the sentiment model on the sentences of evaluation.tsv, by kind of sentence."""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from corpus import HERE, LABELS, Example, read_evaluation
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="half (default: test)")
    parser.add_argument(
        "--model", type=Path, default=HERE / "model", help="folder of the model (default: model/ here)"
    )
    parser.add_argument("--misses", action="store_true", help="also list the sentences it gets wrong")
    return parser.parse_args()


@torch.inference_mode()
def score(folder: Path, texts: list[str]) -> torch.Tensor:
    """Return each text's probabilities, one text at a time, as a server with one caller would."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    rows = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits for text in texts]
    return torch.cat(rows).float().softmax(1)


def report(examples: list[Example], chances: torch.Tensor) -> None:
    """Print right answers and confusion for each category, and for all."""
    cells: dict[str, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
    for example, guess in zip(examples, chances.argmax(1).tolist(), strict=True):
        for name in (example.category, "all"):
            cells[name][example.label, guess] += 1
    print(f"{'category':18}{'right':>10}{'accuracy':>10}   neg->neg neg->pos pos->neg pos->pos")
    for name in sorted(cells, key=lambda name: (name == "all", name)):
        cell = cells[name]
        right, count = cell[0, 0] + cell[1, 1], sum(cell.values())
        spread = "".join(f"{cell[pair]:9}" for pair in ((0, 0), (0, 1), (1, 0), (1, 1)))
        print(f"{name:18}{f'{right}/{count}':>10}{right / count:>10.1%}  {spread}")


def main() -> None:
    """Score one half of the held-out sentences and report."""
    options = parse()
    torch.set_num_threads(2)
    examples = [example for example in read_evaluation() if example.split == options.split]
    chances = score(options.model, [example.sentence for example in examples])
    report(examples, chances)
    print(f"mean confidence {chances.amax(1).mean():.3f}")
    if options.misses:
        for example, chance in zip(examples, chances, strict=True):
            if int(chance.argmax()) != example.label:
                name = LABELS[example.label]
                print(f"{name:9}{float(chance[1]):6.2f}  {example.category:17} {example.sentence}")


if __name__ == "__main__":
    main()
