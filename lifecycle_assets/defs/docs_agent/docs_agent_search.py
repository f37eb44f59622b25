"""Ranking passages for a question, and choosing the sentences that answer it.

Here live the words of a text (API names such as `set_registered_model_alias` count as their
words), the TF-IDF index over passages, how far passages support a question, and extraction of
sentences. Add to it when the ranking or the extraction improves. Reading documentation
(`docs_agent_corpus`) and spans, endpoints or configuration (`agent.py`) do not belong here.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

SUBJECT_SHARE = 0.35  # of a passage's score: likeness of the question to the object's name
RELEVANT_SHARE = 0.6  # of the best passage's score: below it a passage is not quoted
MAX_PER_TITLE = 2
MAX_SENTENCE_CHARS = 420

_WORD = re.compile(r"[A-Za-z0-9_]+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SENTENCE = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)\s+(?=[A-Z`\"(])")
_FENCED = re.compile(r"^```.*?^```$\n?", re.MULTILINE | re.DOTALL)
_SYMBOL = re.compile(r"[{}\[\]=<>|$\\]|\(\)|\( ")  # many of them: code that nobody fenced
_STOP_WORDS = """
a about after all also am an and any anyone are as at be because been before being between both
but by can cannot could did do does doing each either else ever every for from get gets give given
go had happen happens has have having he help her his how i if in into is it its itself just kind
let lets like make makes many may me mean means might more most much must my need needs new no not
of off on once one only or other our out over own please possible purpose s same see set should
show so some someone something such t tell than that the their them then there these they thing
things this those through to too under until up us use used useful user uses using want was way
ways we well were what when where whether which while who whose why will with within without work
works would you your
"""
_STOP = frozenset(_STOP_WORDS.split())


@lru_cache(maxsize=200_000)
def _words_of_token(token: str) -> tuple[str, ...]:
    """Stemmed words of one token; a compound name also counts as itself."""
    parts = [part.lower() for part in _PART.findall(token)]
    words = [_stem(part) for part in parts if part not in _STOP and len(part) > 1]
    if len(parts) > 1 and len(token) < 80:
        words.append(token.strip("_").lower())
    return tuple(words)


def _stem(word: str) -> str:
    """A word without the endings that only change its grammar."""
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word[-1] == "s" and not word.endswith(("ss", "us", "is", "ias")):
        word = word[:-1]
    for ending in ("ization", "ation", "izing", "ized", "ize", "ing", "ion", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] in "bdgmnprt":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 4 and word[-1] == "e" else word


def words_of(text: str) -> list[str]:
    """The content words of a text: stemmed, without stop words, API names taken apart."""
    return [word for token in _WORD.findall(text) for word in _words_of_token(token)]


def sentences_of(text: str) -> list[str]:
    """The sentences of a passage; code and headings are none."""
    lines = [line for line in _FENCED.sub("", text).splitlines() if not line.startswith("#")]
    parts = [part.strip() for line in lines for part in _SENTENCE.split(line)]
    return [part for part in parts if not part.endswith(":") and len(_SYMBOL.findall(part)) <= 1 + len(part) / 40]


@dataclass(frozen=True)
class Hit:
    """A passage found: its position in the index and its cosine similarity, 0 to 1."""

    position: int
    score: float


@dataclass(frozen=True)
class Sentence:
    """A chosen sentence and the rank (0 is best) of the passage it comes from."""

    text: str
    rank: int


class Index:
    """A TF-IDF index; immutable once built, so that threads can share it."""

    def __init__(self, titles: Sequence[str], texts: Sequence[str]) -> None:
        """Index texts under their titles (names of the documented objects, or file headings)."""
        self._vectorizer = TfidfVectorizer(analyzer=words_of, sublinear_tf=True, dtype=np.float32)
        bodies = (f"{title} {text}" for title, text in zip(titles, texts, strict=True))
        self._titles = tuple(titles)
        self._bodies = self._vectorizer.fit_transform(bodies).T.tocsr()
        subjects = (" ".join(_PART.findall(_subject(title))) for title in titles)
        self._subjects = self._vectorizer.transform(subjects).T.tocsr()
        self._vocabulary = self._vectorizer.vocabulary_
        self._idf = self._vectorizer.idf_
        self._unknown_idf = float(self._idf.max()) + 1.0
        opened: set[str] = set()
        self._priors = np.empty(len(self._titles))
        for at, (title, text) in enumerate(zip(titles, texts, strict=True)):
            self._priors[at] = _prior(title, text, opening=title not in opened)
            opened.add(title)

    def weight(self, word: str) -> float:
        """How rare a word is; a word the index has never seen weighs most."""
        column = self._vocabulary.get(word)
        return self._unknown_idf if column is None else float(self._idf[column])

    def search(self, question: str, top_k: int) -> list[Hit]:
        """The `top_k` passages most similar to the question, best first, without zero scores.

        At most `MAX_PER_TITLE` of them document the same object, so that others are heard too.
        """
        query = self._vectorizer.transform([question])
        bodies, subjects = query @ self._bodies, query @ self._subjects
        mixed = (1 - SUBJECT_SHARE) * bodies + SUBJECT_SHARE * subjects
        scores = mixed.toarray()[0] * self._priors
        hits: list[Hit] = []
        taken: Counter[str] = Counter()
        for at in np.argsort(-scores, kind="stable")[: top_k * 8]:
            taken[self._titles[at]] += 1
            if scores[at] > 0 and taken[self._titles[at]] <= MAX_PER_TITLE and len(hits) < top_k:
                hits.append(Hit(int(at), float(scores[at])))
        return hits

    def coverage(self, question: str, text: str) -> float:
        """Share 0..1, weighted by rarity, of the question's plain words that the text contains."""
        wanted = {word for word in words_of(question) if "_" not in word}
        total = sum(self.weight(word) for word in wanted)
        found = wanted.intersection(words_of(text))
        return sum(self.weight(word) for word in found) / total if total else 0.0

    def extract(self, question: str, passages: Sequence[tuple[str, str, float]], limit: int) -> list[Sentence]:
        """At most `limit` sentences of the `(title, text, score)` passages that answer best.

        Greedy: each choice favours rare question words not said yet, good passages and the
        opening sentence of a docstring. They come back in reading order.
        """
        wanted = {word: self.weight(word) for word in words_of(question)}
        top = max((score for _, _, score in passages), default=0.0)
        candidates = []
        for rank, (title, text, score) in enumerate(passages):
            if score < RELEVANT_SHARE * top:
                continue
            subject = set(words_of(_subject(title))) & wanted.keys()
            for order, sentence in enumerate(sentences_of(text)):
                said = set(words_of(sentence)) & wanted.keys()
                if 20 <= len(sentence) <= MAX_SENTENCE_CHARS and (said or order == 0):
                    candidates.append(_Candidate(rank, order, sentence, said, subject, score / top))
        chosen: list[_Candidate] = []
        covered: set[str] = set()
        while candidates and len(chosen) < limit:
            best = max(candidates, key=lambda candidate: candidate.gain(wanted, covered))
            if chosen and best.gain(wanted, covered) < 0.12 * sum(wanted.values()):
                break
            candidates = [other for other in candidates if other.text != best.text]
            chosen.append(best)
            covered |= best.said
        chosen.sort(key=lambda candidate: (candidate.rank, candidate.order))
        return [Sentence(candidate.text, candidate.rank) for candidate in chosen]


@dataclass(frozen=True)
class _Candidate:
    """A sentence that may enter the answer; `score` is relative to the best passage's."""

    rank: int
    order: int
    text: str
    said: set[str]
    subject: set[str]
    score: float

    def gain(self, wanted: dict[str, float], covered: set[str]) -> float:
        """What the sentence adds to an answer that covers some words, in weights of words."""
        fresh = sum(wanted[word] for word in self.said - covered)
        known = sum(wanted[word] for word in (self.said & covered) | (self.subject - self.said))
        opening = 0.25 * sum(wanted.values()) if self.order + self.rank == 0 else 0.0
        return (fresh + 0.4 * known + opening) * self.score**3 / (1 + len(self.text) / 600)


def _subject(title: str) -> str:
    """The telling end of a title: class and member of a dotted name, heading of a file."""
    if "#" in title or "/" in title:
        return title.rpartition("#")[2].replace("-", " ")
    return " ".join(title.split(".")[-2:])


def _prior(title: str, text: str, opening: bool) -> float:
    """How much a passage is trusted before any question.

    Openings of docstrings more; internal or deeply nested names, and stubs, less.
    """
    internal = any(part.startswith("_") or "utils" in part for part in title.split("."))
    depth = 1.0 - 0.05 * max(0, title.count(".") - 1)
    fullness = min(1.0, 0.75 + len(text) / 1000)
    return (0.75 if internal else depth) * fullness * (1.1 if opening else 1.0)
