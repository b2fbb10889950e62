"""Records what transformers 4's question-answering pipeline answers, which transformers 5 no longer has.

Run in an environment of its own, with the Python of this repository, from the repository's root:

    python -m venv /tmp/transformers-4
    /tmp/transformers-4/bin/pip install torch==2.13.0 transformers==4.57.6
    PYTHONPATH=. /tmp/transformers-4/bin/python tests/handler/golden/record_question_answering.py

The model is `tiny_models.reader`; its weights' digest is recorded beside the answers.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import pipeline

from tests.support import tiny_models

GOLDEN = Path(__file__).with_name("question-answering.json")

QUESTION = "what was not good at all"
STORY = (
    "the film was not good at all, and I would not see it again. a wonderful story, well told by everybody in it."
)
LONG = " ".join([STORY, "the battery died after a week; they sent another one, which works."] * 4)
EMOJI = "🎬🎬 the film was 👩\u200d👩\u200d👧 not good; 映画 dïed e\u0301 after a week."
RUN_ON = "wonderfulstory andbattery thefilm-was,notgood itwould; everybodyInIt diedagain"

CASES: dict[str, dict[str, Any]] = {
    "plain": {"question": QUESTION, "context": STORY},
    "another question": {"question": "who told the story?", "context": STORY},
    "a short context": {"question": "who?", "context": "they"},
    "spaces around": {"question": " who? ", "context": "  they sent   another one \n which works  "},
    "upper case": {"question": "WHO died?", "context": STORY.upper()},
    "emoji": {"question": QUESTION, "context": EMOJI},
    "emoji in the question": {"question": "🎬 died?", "context": EMOJI},
    "words of many pieces": {"question": QUESTION, "context": RUN_ON},
    "words of many pieces, not aligned": {"question": QUESTION, "context": RUN_ON, "align_to_words": False},
    "three answers": {"question": QUESTION, "context": STORY, "top_k": 3},
    "ten answers": {"question": QUESTION, "context": STORY, "top_k": 10},
    "three answers, not aligned": {"question": QUESTION, "context": RUN_ON, "top_k": 3, "align_to_words": False},
    "one token": {"question": QUESTION, "context": STORY, "max_answer_len": 1},
    "one token of many pieces": {"question": QUESTION, "context": RUN_ON, "max_answer_len": 1, "top_k": 2},
    "forty tokens": {"question": QUESTION, "context": STORY, "max_answer_len": 40},
    "perhaps no answer": {"question": QUESTION, "context": STORY, "handle_impossible_answer": True},
    "no answer among five": {
        "question": QUESTION,
        "context": STORY,
        "handle_impossible_answer": True,
        "top_k": 5,
    },
    "no answer": {"question": "who?", "context": "they", "handle_impossible_answer": True},
    "windows": {"question": QUESTION, "context": LONG},
    "windows, five answers": {"question": QUESTION, "context": LONG, "top_k": 5},
    "windows, perhaps no answer": {
        "question": QUESTION,
        "context": LONG,
        "handle_impossible_answer": True,
        "top_k": 4,
    },
    "windows, no answer": {
        "question": "a?",
        "context": "was well " * 62,
        "handle_impossible_answer": True,
        "top_k": 3,
    },
    "the same in other case": {
        "question": "another week?",
        "context": "at THEY AT they At They",
        "max_answer_len": 1,
        "top_k": 2,
    },
    "windows, not aligned": {"question": "who?", "context": LONG, "align_to_words": False, "top_k": 4},
    "windows of emoji": {"question": "died?", "context": " ".join([EMOJI] * 8), "top_k": 2},
    "windows that share little": {"question": QUESTION, "context": LONG, "doc_stride": 3},
    "windows that share nothing": {"question": QUESTION, "context": LONG, "doc_stride": 0, "top_k": 3},
    "a long question": {"question": "was the film not good? " * 6, "context": "they sent another one"},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        model = tiny_models.reader(Path(home) / "model")
        reader = pipeline("question-answering", model=str(model), device="cpu")
        cases = [{"name": name, **case, "answer": reader(**case)} for name, case in CASES.items()]
        recorded = {
            "versions": {name: version(name) for name in ("transformers", "tokenizers", "torch")},
            "weights": tiny_models.digest(model),
            "cases": cases,
        }
    GOLDEN.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
