"""Labelled review sentences, written from grammar.txt and the VADER lexicon.

There is no review corpus here to learn from, so the sentences are made: the grammar holds words and
phrases whose meaning its author knows, and this module strings them together the way reviews do.
Everything is drawn from one seeded generator, so the same grammar gives the same sentences.
"""

import random
import re
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

HERE = Path(__file__).resolve().parent
GRAMMAR = HERE / "grammar.txt"
EVALUATION = HERE / "evaluation.tsv"
LABELS = ("NEGATIVE", "POSITIVE")
FLIP = {"+": "-", "-": "+"}
CLAUSE_GROUPS = {
    "plain": 0.6,
    "negation": 0.2,
    "behaviour film": 0.06,
    "behaviour product": 0.06,
    "verdicts": 0.08,
}
CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(~?)(\w+)([+-]?)\}")
SUBJECTS = (
    "FILM",
    "BOOK",
    "MUSIC",
    "PROD",
    "PRODS",
    "APP",
    "PLACE",
    "FOOD",
    "PEOPLE",
    "ASPECTF",
    "ASPECTFS",
    "ASPECTP",
    "ASPECTH",
)
SLOT_LINE = re.compile(r"^(\w+)([+-]?): (.*)$")


@dataclass(frozen=True)
class Example:
    """One held-out sentence: which half it is in, what it means and what kind of sentence it is."""

    split: str
    label: int
    category: str
    sentence: str


def read_evaluation(path: Path = EVALUATION) -> list[Example]:
    """Read the held-out sentences; the first line names the columns."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [Example(split, LABELS.index(label), category, text) for split, label, category, text in rows]


def normalised(text: str) -> str:
    """Fold case, apostrophes and punctuation away, so that a copy is found however it is dressed."""
    text = text.lower().replace("\u2019", "'").replace("n't", " not").replace("cannot", "can not")
    return " ".join(re.findall(r"[a-z0-9]+", text))


def sentences(text: str) -> set[str]:
    """Return a text and each sentence of it, normalised."""
    return {normalised(part) for part in (text, *re.split(r"[.!?]+", text))}


def read_lexicon() -> dict[str, tuple[float, float]]:
    """Map each plain word of the VADER lexicon to its mean rating and the raters' spread."""
    try:
        import vaderSentiment  # noqa: PLC0415 - it is only needed to train, and its absence has an answer
    except ImportError as err:
        raise SystemExit("train.py: no lexicon; install it with: pip install vaderSentiment") from err
    path = Path(vaderSentiment.__file__).parent / "vader_lexicon.txt"
    lexicon = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, mean, spread, *_ = line.split("\t")
        if re.fullmatch(r"[a-z]{4,}", word):
            lexicon[word] = (float(mean), float(spread))
    return lexicon


def review_words(lexicon: dict[str, tuple[float, float]], stop: list[str]) -> dict[str, float]:
    """Keep the words whose rating is what they mean in a review.

    Raters marked "murder" down and "won" up, but in a review both tell the plot: `stop` lists such stems.
    """
    return {
        word: mean
        for word, (mean, spread) in lexicon.items()
        if abs(mean) >= 1.2 and spread <= 1.3 and not word.startswith(tuple(stop))
    }


@dataclass
class Grammar:
    """The slots and templates of grammar.txt, and how to make a sentence of them."""

    slots: dict[str, list[str]] = field(default_factory=dict)
    groups: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path = GRAMMAR) -> "Grammar":
        """Read the grammar; an unknown mark or slot is an error that names its line."""
        grammar = cls()
        group = ""
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line or line.startswith("#"):
                continue
            if line.startswith("[["):
                group, _, weight = line.strip("[]").rpartition(" ")
                grammar.groups[group], grammar.weights[group] = [], float(weight)
            elif slot := SLOT_LINE.match(line):
                grammar.slots[slot[1] + slot[2]] = [item.strip() for item in slot[3].split(" | ")]
            elif line[:2] in ("+ ", "- ", "0 ", "= ", "! "):
                grammar.groups[group].append((line[0], line[2:]))
            else:
                raise SystemExit(f"{path.name}:{number}: neither a slot nor a template: {line[:60]}")
        grammar.share()
        return grammar

    def share(self) -> None:
        """Give a template with many choices more of the draws, or each of its choices would be rare."""
        for group, templates in self.groups.items():
            sizes = [(1 + template.count("|")) ** 0.6 for _, template in templates]
            self.shares[group] = list(accumulate(sizes))

    def subjects(self) -> set[str]:
        """Return the words that reviews are about, which say nothing about the verdict."""
        return {word for name in SUBJECTS for word in self.slots[name] if " " not in word}

    def polar(self, template: str) -> bool:
        """Say whether a template has a slot that takes the side asked for."""
        free = [name for _, name, side in SLOT.findall(template) if not side]
        return any(name == "CL" or name + "+" in self.slots for name in free)

    def write(self, group: str, rng: random.Random, side: str | None = None) -> tuple[str, str]:
        """Write one sentence of a group; ask for a side, or take what comes."""
        for _ in range(1000):
            mark, template = rng.choices(self.groups[group], cum_weights=self.shares[group])[0]
            want = side or rng.choice("+-")
            if mark in "+-0":
                if mark in (want, "0"):
                    return self.fill(template, mark, rng), mark
                continue
            slot_side = want if mark == "=" else FLIP[want]
            fixed = {given for _, _, given in SLOT.findall(template) if given}
            if self.polar(template) or slot_side in fixed:
                return self.fill(template, slot_side, rng), want
        raise SystemExit(f"grammar.txt: group {group!r} has no template that is {side}")

    def fill(self, template: str, side: str, rng: random.Random) -> str:
        """Replace choices and slots until none is left."""
        while True:
            if found := CHOICE.search(template):
                piece = rng.choice(found[1].split("|"))
            elif found := SLOT.search(template):
                piece = self.slot(found, side, rng)
            else:
                return tidy(template)
            template = template[: found.start()] + piece + template[found.end() :]

    def slot(self, found: re.Match[str], side: str, rng: random.Random) -> str:
        """Choose what fills one slot; a slot with sides takes the one asked for, or `~` its opposite."""
        turn, name, given = found.groups()
        wanted = given or (FLIP[side] if turn else side)
        if name == "CL":
            group = rng.choices(list(CLAUSE_GROUPS), list(CLAUSE_GROUPS.values()))[0]
            return self.write(group, rng, wanted)[0]
        return rng.choice(self.slots[name] if name in self.slots else self.slots[name + wanted])


def tidy(text: str) -> str:
    """Mend what filling leaves: doubled spaces, a space before a comma, "a" before a vowel."""
    text = " ".join(text.split()).replace(" ,", ",").replace(" .", ".").replace(" 's ", "'s ")
    text = re.sub(r"\b([Aa])n? (?=[aeio])", r"\1n ", text)
    return re.sub(r"\b([Aa])n (?=[^aeio\W])", r"\1 ", text).strip(" ,")


@dataclass
class Writer:
    """Writes sentences and whole reviews, and never one that is held out."""

    grammar: Grammar
    words: dict[str, float]
    forbidden: set[str]
    rng: random.Random

    def __post_init__(self) -> None:
        self.sides = {
            "+": [word for word, mean in self.words.items() if mean > 0],
            "-": [word for word, mean in self.words.items() if mean < 0],
        }
        weighted = [name for name, weight in self.grammar.weights.items() if weight]
        self.names = [name for name in weighted if not name.startswith("clauses")]
        self.weights = [self.grammar.weights[name] for name in self.names]
        self.facts = next(name for name in self.grammar.groups if name.startswith("clauses about"))

    def sentence(self, side: str) -> tuple[str, str]:
        """Write one sentence that means the side asked for, and is not held out."""
        while True:
            if self.rng.random() < 0.06:
                written = self.lexical(side)
            else:
                written = self.grammar.write(self.rng.choices(self.names, self.weights)[0], self.rng, side)
            if not sentences(written[0]) & self.forbidden:
                return written

    def lexical(self, side: str) -> tuple[str, str]:
        """Write a bare sentence around words of the lexicon, to teach words that the grammar does not use."""
        one, two, three = self.rng.sample(self.sides[side], 3)
        shapes = (
            f"{one}",
            f"so {one}",
            f"{one} and {two}",
            f"it was {one}",
            f"{one}, {two}, {three}",
            f"really {one}",
            f"it is {one} and {two}",
            f"this is {one}",
            f"full of {one}",
            f"{one} {two}",
            f"I felt {one}",
        )
        return self.rng.choice(shapes), side

    def review(self) -> tuple[str, int]:
        """Write a review: mostly one sentence, at times several of one mind with facts between."""
        many = self.rng.choices((1, 2, 3, 4, 5, 6), (74, 11, 6, 4, 3, 2))[0]
        text, side = self.sentence(self.rng.choice("+-"))
        parts = [text]
        while len(parts) < many:
            draw = self.rng.random()
            if draw < 0.35 and many > 2:
                parts.append(self.grammar.write(self.facts, self.rng)[0])
            elif draw < 0.45 and many > 3:
                parts.insert(0, self.sentence(FLIP[side])[0])
            else:
                parts.append(self.sentence(side)[0])
        if many > 1 and self.rng.random() < 0.3:
            parts.insert(0, self.grammar.write(self.facts, self.rng)[0])
        return " ".join(self.dress(part) for part in parts), int(side == "+")

    def dress(self, text: str) -> str:
        """Give a sentence the capitals, stops and slips that people write."""
        draw = self.rng.random
        text = text[0].upper() + text[1:]
        if draw() < 0.06:
            text = text.replace("n't", "nt")
        elif draw() < 0.06:
            text = text.replace("'", "\u2019")
        if text[-1] in ".!?":
            return text
        return text + self.rng.choices((".", "", "!", "!!", "..."), (60, 20, 15, 3, 2))[0]

    def corpus(self, size: int) -> list[tuple[str, int]]:
        """Write `size` different reviews, none of them held out."""
        seen: dict[str, tuple[str, int]] = {}
        while len(seen) < size:
            text, label = self.review()
            if not sentences(text) & self.forbidden:
                seen.setdefault(text, (text, label))
        return list(seen.values())
