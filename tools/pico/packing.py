"""Turn the corpus and the conversations into arrays of tokens.

Owns the on-disk form that training reads: little-endian uint16 tokens, where bit 15 says "no loss on this
token". Text is one stream of documents, each closed by <|endoftext|>. Conversations are rows of ROW tokens
that hold whole samples, because a call whose tools were cut off would teach the model to make names up.

In:  BUILD/corpus/*.jsonl, BUILD/tokenizer, BUILD/conversations/{train,valid}.jsonl.
Out: BUILD/packed/{text,chat,valid_code,valid_doc,valid_strange,valid_chat}.bin, meta.json.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

NO_LOSS = 0x8000
ROW = 2049
"""A row holds one target more than the context is long."""


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a JSONL file."""
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)


def encoded(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Token ids of each text."""
    for start in range(0, len(texts), 512):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + 512], add_special_tokens=False):
            yield encoding.ids


def stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts after one another, uint16 [n]."""
    end = tokenizer.token_to_id("<|endoftext|>")
    return np.concatenate([np.array([*ids, end], np.uint16) for ids in encoded(tokenizer, texts)])


def rows(tokenizer: Tokenizer, samples: list[dict[str, Any]]) -> np.ndarray:
    """Samples packed into rows first-fit, uint16 [n, ROW]; prompts and padding carry NO_LOSS."""
    end = tokenizer.token_to_id("<|endoftext|>")
    prompts = encoded(tokenizer, [sample["prompt"] for sample in samples])
    completions = encoded(tokenizer, [sample["completion"] for sample in samples])
    done: list[np.ndarray] = []
    opened: list[list[int]] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        sample = [token | NO_LOSS for token in prompt] + completion + [end]
        if len(sample) > ROW:
            continue
        place = next((row for row in opened if len(row) + len(sample) <= ROW), None)
        if place is None:
            place = []
            opened.append(place)
        place += sample
        if len(opened) > 24:
            opened.sort(key=len)
            done.append(_row(opened.pop(), end))
    return np.stack(done + [_row(row, end) for row in opened])


def _row(tokens: list[int], end: int) -> np.ndarray:
    return np.array(tokens + [end | NO_LOSS] * (ROW - len(tokens)), np.uint16)


def pack_text(build: Path, tokenizer: Tokenizer, meta: dict[str, Any]) -> None:
    """The training stream and the three held-out streams."""
    out = build / "packed"
    valid = list(records(build / "corpus/valid.jsonl"))
    held_out = {
        "code": [document for document in valid if document["kind"] == "code"],
        "doc": [document for document in valid if document["kind"] == "doc"],
        "strange": [
            document for document in records(build / "corpus/strange.jsonl") if document["kind"] == "code"
        ],
    }
    for name, documents in held_out.items():
        texts = [document["text"] for document in documents]
        tokens = stream(tokenizer, texts)
        tokens.tofile(out / f"valid_{name}.bin")
        size = sum(len(text.encode()) for text in texts)
        meta[f"valid_{name}"] = {"bytes": size, "tokens": len(tokens), "bytes_per_token": size / len(tokens)}
    size = 0
    with (out / "text.bin").open("wb") as file:
        batch: list[str] = []
        for document in records(build / "corpus/train.jsonl"):
            batch.append(document["text"])
            size += len(document["text"].encode())
            if len(batch) == 4096:
                stream(tokenizer, batch).tofile(file)
                batch = []
        stream(tokenizer, batch).tofile(file)
        meta["text"] = {"bytes": size, "tokens": file.tell() // 2}


def pack_chat(build: Path, tokenizer: Tokenizer, meta: dict[str, Any]) -> None:
    """The conversations."""
    for part in ("train", "valid"):
        samples = list(records(build / f"conversations/{part}.jsonl"))
        random.Random(11).shuffle(samples)
        table = rows(tokenizer, samples)
        table.tofile(build / "packed" / ("chat.bin" if part == "train" else "valid_chat.bin"))
        meta[f"chat_{part}"] = {
            "samples": len(samples),
            "tokens": int(table.size),
            "loss_tokens": int((table < NO_LOSS).sum()),
        }


def main() -> None:
    """Pack the parts that were asked for; meta.json keeps the facts of the other parts."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--build", type=Path, default=Path("build"))
    arguments.add_argument("--only", choices=("text", "chat"))
    options = arguments.parse_args()
    tokenizer = Tokenizer.from_file(str(options.build / "tokenizer/tokenizer.json"))
    (options.build / "packed").mkdir(exist_ok=True)
    facts = options.build / "packed/meta.json"
    meta = json.loads(facts.read_text()) if facts.exists() else {}
    if options.only != "chat":
        pack_text(options.build, tokenizer, meta)
    if options.only != "text":
        pack_chat(options.build, tokenizer, meta)
    facts.write_text(json.dumps(meta, indent=1) + "\n")
    print(json.dumps(meta))


if __name__ == "__main__":
    main()
