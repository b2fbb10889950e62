"""The texts that are sent: distinct, English-like, the same in every run."""

from __future__ import annotations

import random

COUNT = 512
LENGTHS = {"mixed": (4, 120), "short": (4, 16), "long": (80, 120)}  # words
BLOCK = 32
WORDS = """
the a of and to in that it was for on with as at by this from they we she he not but what all were when your can
said there use each which how their will other about out many then them these so some her would make like him
into time has look two more write go see number no way could people my than first water been call who oil its
now find long down day did get come made may part over new sound take only little work know place year live me
back give most very after thing our just name good sentence man think say great where help through much before
line right too mean old any same tell boy follow came want show also around form three small set put end does
another well large must big even such because turn here why ask went men read need land different home us move
try kind hand picture again change off play spell air away animal house point page letter mother answer found
study still learn should world high every near add food between own below country plant last school father keep
tree never start city earth eye light thought head under story saw left few while along might close something
seem next hard open example begin life always those both paper together got group often run important until
children side feet car mile night walk white sea began grow took river four carry state once book hear stop
without second later miss idea enough eat face watch far really almost let above girl sometimes mountain cut
young talk soon list song being leave family battery price engine doctor market
""".split()  # noqa: SIM905 - a list literal would be three times as long


def text_set(name: str) -> list[str]:
    """All texts of one set.

    Every block of 32 holds the whole range of lengths evenly: a slow candidate gets less far through the list than
    a fast one, and has still had texts of the same mean length.
    """
    shortest, longest = LENGTHS[name]
    draw = random.Random(f"texts/{name}")
    lengths = [shortest + round(step * (longest - shortest) / (BLOCK - 1)) for step in range(BLOCK)]
    texts: dict[str, None] = {}
    while len(texts) < COUNT:
        draw.shuffle(lengths)
        texts.update(dict.fromkeys(sentence(draw, length) for length in lengths))
    return list(texts)[:COUNT]


def sentence(draw: random.Random, length: int) -> str:
    """So many words, with a capital and a full stop."""
    return " ".join(draw.choices(WORDS, k=length)).capitalize() + "."
