"""Cuts the demo's questions and their order of repetition from the public sets.

    EMBEDKEEP_DATA=<folder> python benchmarks/demo_data.py

Writes operator/embedkeep_operator/local/data/, whose SOURCES.md says what comes from where. Run
again only to change the sample: its output is kept in the repository.
"""

import gzip
import json
from pathlib import Path

import traces
from report import ROOT

TARGET = ROOT / "operator" / "embedkeep_operator" / "local" / "data"
QUESTIONS = 2000
"""Half from each set: about 100 kB of text."""
FIRST_REQUEST = 60_000
"""Of the trace: warm, as a cache sees traffic on any day but its first."""


def questions(file: Path, *, split: str, count: int) -> list[str]:
    """*count* texts spread evenly over the distinct ones of a set, so over all its intents."""
    with gzip.open(file, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    texts = list(dict.fromkeys(str(row["text"]) for row in rows if row["split"] == split))
    return [texts[index * len(texts) // count] for index in range(count)]


def main() -> None:
    """Write both files."""
    folder = traces.folder()
    TARGET.mkdir(exist_ok=True)
    banking = questions(folder / "intents_banking77.jsonl.gz", split="test", count=QUESTIONS // 2)
    clinc = questions(folder / "intents_clinc150.jsonl.gz", split="test", count=QUESTIONS // 2)
    texts = [text for pair in zip(banking, clinc, strict=True) for text in pair]
    lines = (json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
    (TARGET / "questions.jsonl").write_text("".join(lines))

    number: dict[int, int] = {}
    order: list[int] = []
    for key in traces.keys(folder / traces.SEQUENCES["cache2k web07"])[FIRST_REQUEST:]:
        if key not in number and len(number) == QUESTIONS:
            break
        order.append(number.setdefault(key, len(number)))
    (TARGET / "order.txt").write_text("".join(f"{number}\n" for number in order))
    print(f"{len(texts)} questions, {len(set(texts))} distinct; asked for {len(order)} times")


if __name__ == "__main__":
    main()
