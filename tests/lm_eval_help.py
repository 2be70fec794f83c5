"""Rows of our own for lm-eval's tasks, a tiny checkpoint with its tokenizer, and one cell measured on it."""

from __future__ import annotations

import json
from pathlib import Path

from pretrained_help import write_checkpoint
from tokenizer_help import write_byte_bpe

import suites
from harness.loading import load_model
from harness.measure import Measurement
from harness.plan import Cell, Settings
from harness.pretrained import Opened, open_model
from harness.rows import base_row
from harness.store import Row
from suites.suite import Answer, Context, Suite
from suites.tokenizer import ByteTokenizer

TASKS = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "lambada_openai", "piqa", "winogrande")
PLACES = ("harbour", "mill", "orchard", "café", "library", "station")


def rows(task: str, count: int = 6) -> list[dict]:
    """Invented rows in the task's format, with what real ones have: accents, brackets, gaps, empty fields."""
    return [_row(task, number, PLACES[number % len(PLACES)]) for number in range(count)]


def _row(task: str, number: int, place: str) -> dict:
    if task.startswith("arc"):
        labels = ["1", "2", "3"] if number == 1 else ["A", "B", "C", "D"]
        texts = [f"the {place} no. {choice}" for choice in range(len(labels))]
        question = f"Which way leads past the {place} after {number} bends?"
        choices = {"text": texts, "label": labels}
        return {"id": str(number), "question": question, "choices": choices, "answerKey": labels[number % 3]}
    if task == "boolq":
        passage = f"The {place} -- It was built {number} years ago; nobody remembers by whom, or why."
        return {"question": f"was the {place} ever built", "passage": passage, "label": number % 2}
    if task == "hellaswag":
        return {
            "activity_label": f"Painting the {place}",
            "ctx_a": f"[header] How to paint [title] Look at the  {place}.",
            "ctx_b": "the painter" if number % 2 else "",
            "endings": [f" begins at side {side} [substeps] of it." for side in range(3)] + ["stops."],
            "label": str(number % 4),
        }
    if task == "lambada_openai":
        return {"text": f"They met at the {place}, and when they parted, they parted at the {place}"}
    if task == "piqa":
        solutions = {"sol1": f"Walk to the {place}.", "sol2": "Wait until it comes to you by itself."}
        return {"goal": f"Reach the {place} before {number} o'clock.", **solutions, "label": number % 2}
    assert task == "winogrande"
    sentence = f"Ada waited at the {place} for Bo because _ was early by {number} minutes, said the_sign."
    return {"sentence": sentence, "option1": "Ada", "option2": "Bo", "answer": str(1 + number % 2)}


def write_rows(folder: Path, count: int = 6) -> Path:
    """lm_eval/TASK.jsonl of every local task below `folder`, which is returned."""
    (folder / "lm_eval").mkdir(parents=True)
    for task in TASKS:
        lines = (json.dumps(row, ensure_ascii=False) for row in rows(task, count))
        (folder / "lm_eval" / f"{task}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


ROLLING = """
task: chronicle
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
metadata: {{version: 3.0}}
"""
GENERATING = """
include: chronicle.yaml
task: quote
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3}
filter_list:
  - {name: none, filter: [{function: take_first}]}
  - {name: strict-match, filter: [{function: regex, regex_pattern: "(z+)"}, {function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
GROUP = """
group: both
task: [chronicle, quote]
aggregate_metric_list: [{metric: bits_per_byte}, {metric: exact_match, weight_by_size: false}]
"""


def write_tasks(tmp_path: Path) -> Path:
    """A folder of tasks of the user's: rolling, generating, and the group of both."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [json.dumps({"text": f"Chapter {n} tells of a harbour. " * (n + 1)}) for n in range(3)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    rolling = ROLLING.format(data=folder / "rows.jsonl", cache=tmp_path / "datasets")
    for name, text in (("chronicle", rolling), ("quote", GENERATING), ("both", GROUP)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


def write_model(folder: Path, context: int = 512) -> Path:
    """A random Llama of two layers and its tokenizer, which begins texts with <s>, as on the hub."""
    write_checkpoint(
        folder, "llama", vocab_size=300, hidden_size=32, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_byte_bpe(folder, 300, puts_bos=True, **settings)
    return folder


class Asking:
    """Stands where the harness does: keeps the cases of each call and answers something."""

    def __init__(self) -> None:
        self.calls: list[list] = []

    def __call__(self, cases):
        self.calls.append(list(cases))
        return [
            Answer(forced, tuple(-0.5 for _ in forced), "text", (False,) * len(forced) or None)
            for forced in (case.forced or () for case in cases)
        ]


def opened(folder: Path) -> Opened:
    return open_model(folder)


def suite(options: str, of: Opened) -> Suite:
    return suites.load(f"lm_eval:{options}", Context(of.tokenizer, None))


def plain(options: str) -> Suite:
    """The suite on bytes."""
    return suites.load(f"lm_eval:{options}", Context(ByteTokenizer(), None))


def measured(spec: str, asked: Suite, of: Opened, folder: Path, batch: int = 4) -> dict[str, list[Row]]:
    """Rows of every task of a suite, through the harness."""
    settings = Settings(model=str(folder), batch=batch)
    model = load_model(spec, settings, pretrained=of.pretrained)
    found = {}
    for axes in asked.cells():
        cell = Cell("key", spec, "lm_eval", axes)
        found[axes["task"]] = Measurement(
            model, asked, cell, settings, None, on_phase=lambda phase: None,
            base=lambda cell, **known: base_row("run", cell, settings, **known),
        ).measure()  # fmt: skip
    return found


def numbers(rows: list[Row]) -> dict[str, float]:
    """lm-eval's numbers of a cell."""
    cost = ("_s", "_tokens", "_tokens_asked", "_bytes")
    scored = [row for row in rows if row.phase == "score" and row.case is None]
    return {row.metric: row.value for row in scored if not row.metric.endswith(cost)}
