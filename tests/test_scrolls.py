"""The scrolls suite: its prompts, its cases, its scores, and what it says of damaged files."""

from __future__ import annotations

import json
import lzma
import math

import pytest
from scrolls_help import OPTIONS, ROWS, STORY, asked, row, write
from suite_help import OTHERS, TOKENIZER, all_cases

import suites
from models.spec import SpecError
from suites import Answer, Context
from suites.documents import TextError
from suites.scrolls.tasks import TASKS

ALL = "+".join(ROWS)


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A data folder with every task in it."""
    monkeypatch.setenv("KVMARK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    for task, rows in ROWS.items():
        write(tmp_path / "data", task, rows)
    return tmp_path / "data"


@pytest.fixture(params=["bytes", *OTHERS])
def tokenizer(request, tmp_path):
    return TOKENIZER if request.param == "bytes" else OTHERS[request.param](tmp_path)


def suite_of(spec: str, seed: int = 0, tokenizer=TOKENIZER):
    return suites.load(spec, Context(tokenizer, None, seed))


def pairs(spec: str, seed: int = 0, tokenizer=TOKENIZER):
    """(gold, answer) of every example."""
    cases = all_cases(spec, Context(tokenizer, None, seed))
    return list(zip(cases[::2], cases[1::2], strict=True))


def text_of(case, tokenizer=TOKENIZER) -> str:
    return tokenizer.decode(case.prompt)


# --- cases ---------------------------------------------------------------------------------------


def test_one_cell_per_task_and_two_cases_per_example_on_one_prompt():
    suite = suite_of(f"scrolls:tasks={ALL},length=4000")
    assert [cell["task"] for cell in suite.cells()] == list(ROWS)
    for cell in suite.cells():
        assert cell["length"] == 4000 and cell["truncates"] == "document end"
        gold, answer = suite.cases(cell)
        rows = ROWS[cell["task"]]
        assert gold.id == answer.id == rows[0]["id"]
        assert (gold.prompt, gold.seed, gold.axes) == (answer.prompt, answer.seed, answer.axes)
        assert TOKENIZER.decode(gold.forced) == " " + rows[0]["output"] and answer.forced is None
        assert 0 < answer.max_new_tokens <= 1024
    assert len({case.seed for case in all_cases(f"scrolls:tasks={ALL}", suite.context)}) == len(ROWS)


def test_official_tasks_are_the_default_and_a_surrogate_must_be_named():
    tasks = suites.options("scrolls").tasks
    assert set(ROWS) - set(tasks) == {"summ_screen_fd_surrogate_crd3"}
    assert "surrogate" not in suite_of("scrolls").notes()
    notes = suite_of("scrolls:tasks=summ_screen_fd_surrogate_crd3").notes()
    assert "NOT SummScreen" in notes["surrogate"]
    assert notes["files"].startswith("scrolls:summ_screen_fd_surrogate_crd3@")


def test_rows_of_one_id_are_its_references_and_the_first_input_is_kept(data):
    other = asked("q2", "Another?", "none", document="short")
    late = row("q1", "Changed?\n\nanother document", "white powder", 7)
    write(data, "qasper", [*ROWS["qasper"], *other, late])
    (gold, answer), second = pairs("scrolls:tasks=qasper")
    assert answer.target["references"] == ("flour", "sacks of flour", "white powder")
    assert text_of(gold).endswith("Question: What was sold?\n\nAnswer:") and second[0].id == "q2"
    suite = suite_of("scrolls:tasks=qasper")
    for text, f1 in ((" sacks of flour", 1), ("White powder!", 1), ("of", 0.5), ("", 0), ("Changed", 0)):
        assert suite.score(answer, Answer((), (), text)) == {"token_f1": pytest.approx(f1)}


def test_examples_are_drawn_by_the_seed_and_more_hold_the_fewer(data):
    write(data, "qmsum", [one for n in range(30) for one in asked(f"m{n}", f"Number {n}?", str(n))])
    drawn = {
        (n, seed): [gold.id for gold, _ in pairs(f"scrolls:tasks=qmsum,examples={n}", seed)]
        for n in (0, 5, 12)
        for seed in (0, 1)
    }
    assert drawn[0, 0] == drawn[0, 1] == [f"m{n}" for n in range(30)]
    assert len(drawn[5, 0]) == 5 and set(drawn[5, 0]) < set(drawn[12, 0]) and drawn[5, 0] != drawn[5, 1]
    assert drawn[12, 0] == [id for id in drawn[0, 0] if id in drawn[12, 0]]
    assert "qmsum 5 of 30 (0 truncated)" in suite_of("scrolls:tasks=qmsum,examples=5").notes()["examples"]


def test_max_new_bounds_every_task_and_keeps_what_is_shorter():
    def most(spec):
        return {answer.axes["task"]: answer.max_new_tokens for _, answer in pairs(spec)}

    assert most(f"scrolls:tasks={ALL}") == {name: TASKS[name].max_new for name in ROWS}
    capped = most(f"scrolls:tasks={ALL},max_new=40")
    assert capped["gov_report"] == capped["quality"] == 40 and capped["contract_nli"] == 16


def test_phrases_and_labels_end_with_their_line_and_summaries_do_not():
    stops = {answer.axes["task"]: answer.stop for _, answer in pairs(f"scrolls:tasks={ALL}")}
    line = {"qasper", "narrative_qa", "quality", "contract_nli"}
    assert stops == {name: ("\n",) if name in line else () for name in ROWS}


# --- prompts -------------------------------------------------------------------------------------


def test_the_plain_prompt_is_the_input_and_a_cue():
    for gold, answer in pairs(f"scrolls:tasks={ALL},prompt=scrolls,length=9000"):
        rows, task = ROWS[gold.axes["task"]], TASKS[gold.axes["task"]]
        assert text_of(gold) == f"{rows[0]['input']}\n\n{task.cue}"
        assert gold.axes["kept_share"] == 1 and gold.axes["truncates"] == "input end"
        assert answer.prompt == gold.prompt


def test_the_zeroscrolls_prompt_has_document_instruction_question_and_cue_in_this_order():
    for gold, _ in pairs(f"scrolls:tasks={ALL},length=9000"):
        task, (query, *_) = TASKS[gold.axes["task"]], ROWS[gold.axes["task"]][0]["input"].split("\n\n")
        wanted = f"{STORY}\n\n{task.instruction}"
        if task.asked:
            query = OPTIONS if gold.axes["task"] == "quality" else query
            wanted += f"\n\n{task.asked}: {query}"
        assert text_of(gold) == f"{wanted}\n\n{task.cue}"
    asks_for = {name: task.instruction for name, task in TASKS.items()}
    assert "unanswerable" in asks_for["qasper"] and '"yes"' in asks_for["qasper"]
    assert "paragraph" in asks_for["squality"]
    assert all(
        label in asks_for["contract_nli"] for label in ("Entailment", "Contradiction", "Not mentioned")
    )


@pytest.mark.parametrize("form", ["zeroscrolls", "scrolls"])
@pytest.mark.parametrize("length", [700, 1001])
def test_what_is_too_long_loses_its_end_and_never_its_question(tokenizer, form, length):
    task = "quality"
    ((gold, _),) = pairs(f"scrolls:tasks={task},prompt={form},length={length}", tokenizer=tokenizer)
    text, start = text_of(gold, tokenizer), () if tokenizer.bos is None else (tokenizer.bos,)
    assert gold.prompt[: len(start)] == start and gold.axes["prompt_tokens"] == len(gold.prompt) <= length
    assert text.count(OPTIONS) == 1 and "�" not in text and text.endswith("\n\nAnswer:")
    document = text.partition(OPTIONS + "\n\n")[2] if form == "scrolls" else text
    kept = next(n for n in range(len(STORY), -1, -1) if document.startswith(STORY[:n]))
    whole = len(tokenizer.encode(f"{OPTIONS}\n\n{STORY}")) + 400 < length
    assert kept == len(STORY) if whole else 0 < kept < len(STORY) and len(gold.prompt) >= length - 4
    assert (gold.axes["kept_share"] == 1) == (kept == len(STORY))


def test_no_character_is_cut_in_two(data):
    faces = "🙂 naïve — 🙂🙂\n" * 99
    write(data, "narrative_qa", asked("n1", "Who?", "he", document=faces))
    for length in range(500, 530):
        ((gold, _),) = pairs(f"scrolls:tasks=narrative_qa,length={length}")
        kept = text_of(gold).partition("\n\nAbove")[0]
        assert faces.startswith(kept) and length - 4 < len(gold.prompt) <= length


def test_of_a_very_long_document_only_the_beginning_is_read(data, tokenizer):
    """What no prompt can hold is not kept in memory, and yet counts in the share that is left."""
    long = STORY * 40
    write(data, "narrative_qa", asked("n1", "Who?", "he", document=long))
    for form, query in (("zeroscrolls", ""), ("scrolls", "Who?\n\n")):
        spec = f"scrolls:tasks=narrative_qa,length=600,prompt={form}"
        ((gold, _),) = pairs(spec, tokenizer=tokenizer)
        text = text_of(gold, tokenizer)
        assert text.startswith(query)
        text = text[len(query) :]
        kept = next(n for n in range(len(text), -1, -1) if long.startswith(text[:n]))
        assert 590 <= len(gold.prompt) <= 600
        assert gold.axes["kept_share"] == pytest.approx(kept / len(long), abs=2e-4)
        assert "(1 truncated)" in suite_of(spec, tokenizer=tokenizer).notes()["examples"]


def test_gold_goes_on_from_the_prompt_as_one_text(tokenizer):
    for gold, _ in pairs(f"scrolls:tasks={ALL},length=2000", tokenizer=tokenizer):
        reference = ROWS[gold.axes["task"]][0]["output"]
        assert tokenizer.decode(gold.prompt + gold.forced) == f"{text_of(gold, tokenizer)} {reference}"


def test_a_gold_answer_that_a_tokenizer_joins_with_the_cue_is_encoded_alone(tmp_path):
    from tokenizer_help import write_llama2c

    from suites.tokenizers import open_tokenizer

    joining = open_tokenizer(write_llama2c(tmp_path / "tok.bin", [" ", ":", "r", ": ", "r: "]), 1000, 1, (2,))
    ((gold, answer),) = pairs("scrolls:tasks=qmsum,length=9000", tokenizer=joining)
    assert gold.prompt == answer.prompt and text_of(gold, joining).endswith("\n\nAnswer:")
    assert joining.decode(gold.forced).strip() == "He sold sacks of flour."


@pytest.mark.parametrize(
    ("form", "task", "beside"),
    [
        ("zeroscrolls", "quality", "question and instruction and cue"),
        ("zeroscrolls", "gov_report", "instruction and cue"),
        ("scrolls", "quality", "question and cue"),
        ("scrolls", "squality", "question and cue"),
        ("scrolls", "gov_report", "cue"),
    ],
)
def test_a_length_without_room_for_a_document_is_one_sentence(form, task, beside):
    """It names what takes the room; the least length that has some holds question and options whole."""
    spec = f"scrolls:tasks={task},prompt={form},length"
    id, query = ROWS[task][0]["id"], ROWS[task][0]["input"].removesuffix(STORY).strip()
    with pytest.raises(TextError, match=f"length=8 leaves {id} no room .* beside {beside}; ") as caught:
        pairs(f"{spec}=8")
    needed = int(str(caught.value).split("; ")[1].split()[0])
    ((gold, _),) = pairs(f"{spec}={needed}")
    assert len(gold.prompt) == needed and query in text_of(gold)
    with pytest.raises(TextError, match="no room"):
        pairs(f"{spec}={needed - 1}")


# --- scores --------------------------------------------------------------------------------------


def test_each_task_is_scored_by_its_own_metric_and_gold_by_its_likelihood():
    suite = suite_of(f"scrolls:tasks={ALL}")
    metrics = {}
    for gold, answer in pairs(f"scrolls:tasks={ALL}"):
        task, said = gold.axes["task"], f" {answer.target['references'][-1].upper()}."
        scores = suite.score(answer, Answer((), (), said))
        assert set(scores.values()) == {1.0}, "the last reference, in capitals"
        metrics[task] = set(scores)
        found = suite.score(gold, Answer(gold.forced, (-0.5,) * len(gold.forced)))
        num_bytes = len(f" {answer.target['references'][0]}".encode())
        assert found == {"gold_nll_nats": num_bytes / 2, "gold_tokens": num_bytes, "gold_bytes": num_bytes}
    rouge = {"rouge1", "rouge2", "rougeL"}
    assert metrics == {
        "gov_report": rouge, "summ_screen_fd": rouge, "summ_screen_fd_surrogate_crd3": rouge, "qmsum": rouge,
        "squality": rouge, "qasper": {"token_f1"}, "narrative_qa": {"token_f1"},
        "quality": {"exact_match"}, "contract_nli": {"exact_match"},
    }  # fmt: skip


def test_an_empty_reference_is_a_space_and_does_not_crash(data):
    """One of an example's references may be empty; an example without any other is a damaged file."""
    write(data, "qasper", [*asked("e", "Empty?", "", "none"), *ROWS["qasper"]])
    (gold, answer), _ = pairs("scrolls:tasks=qasper")
    suite = suite_of("scrolls:tasks=qasper")
    assert TOKENIZER.decode(gold.forced) == " "
    assert suite.score(answer, Answer((), (), "")) == {"token_f1": 0}
    assert suite.score(answer, Answer((), (), "None.")) == {"token_f1": 1}
    assert suite.score(gold, Answer(gold.forced, (-1.0,)))["gold_nll_nats"] == 1


def test_axes_hold_neither_input_nor_reference():
    for gold, answer in pairs(f"scrolls:tasks={ALL}"):
        assert set(gold.axes) == {"task", "length", "prompt", "truncates", "prompt_tokens", "kept_share"}
        assert all(len(str(value)) < 40 for value in answer.axes.values())


# --- what was read -------------------------------------------------------------------------------


def test_the_label_names_the_data_and_changes_with_it(data):
    before = suite_of("scrolls:tasks=qmsum+squality").source()
    assert before.startswith("scrolls:qmsum+squality@")
    path = data / "scrolls" / "qmsum" / "validation.jsonl"
    raw = path.read_bytes()
    path.with_suffix(".jsonl.xz").write_bytes(lzma.compress(raw))
    path.unlink()
    assert suite_of("scrolls:tasks=qmsum+squality").source() == before, "compression does not count"
    write(data, "qmsum", raw.replace(b"sacks", b"bags!"))
    assert suite_of("scrolls:tasks=qmsum+squality").source() != before
    notes = suite_of("scrolls:tasks=qmsum,length=800").notes()
    assert "qmsum 1 of 1 (1 truncated)" in notes["examples"] and "document end" in notes["truncation"]
    assert notes["files"] == suite_of("scrolls:tasks=qmsum").source()


def test_a_task_that_is_not_here_is_one_sentence_that_says_how_to_get_it(data):
    (data / "scrolls" / "qmsum" / "validation.jsonl").unlink()
    with pytest.raises(TextError, match="no scrolls/qmsum/validation.jsonl") as caught:
        suite_of("scrolls").source()
    message = str(caught.value)
    assert "`kvmark data fetch scrolls`" in message and "`kvmark data import`" in message
    assert "tasks=gov_report+summ_screen_fd+qasper+" in message and "\n" not in message


LINE = json.dumps(ROWS["qasper"][0]).encode()


@pytest.mark.parametrize(
    ("task", "rows", "named"),
    [
        ("qasper", b"", "no rows"),
        ("qasper", LINE + b"\n\n" + LINE.replace(b"q1_0", b"q1_1"), "line 2 of scrolls/qasper is empty"),
        ("qasper", b"\n" + LINE, "line 1 of scrolls/qasper is empty"),
        ("qasper", LINE + b"\n" + LINE[:50], "line 2 of scrolls/qasper is not JSON"),
        ("qasper", LINE.decode().encode("utf-16"), "not UTF-8"),
        ("qasper", LINE + b"\n\xff", "not UTF-8"),
        ("qasper", LINE.replace(b"q1_0", rb"\ud800"), "line 1 .* half a surrogate pair"),
        ("qasper", LINE + b"\n" + LINE, "line 2 of scrolls/qasper has the pid of an earlier line"),
        ("qasper", [{k: v for k, v in ROWS["qasper"][0].items() if k != "output"}], "line 1 .* output"),
        ("qasper", [ROWS["qasper"][0] | {"output": None}], "line 1 .* has no output"),
        ("qasper", [ROWS["qasper"][0] | {"id": 7}], "line 1 .* has no id that is a string"),
        ("qasper", [row("x", "q?\n\nd", ""), row("y", "q?\n\nd", " ")], "no references"),
        ("qasper", [*ROWS["qasper"], *asked("x", "q?", "", " ")], "x in scrolls/qasper has no reference"),
        ("qasper", [row("x", "no query at all", "x")], "line 1 of scrolls/qasper has no query"),
        ("qasper", [row("x", "\n\nan empty query", "x")], "line 1 of scrolls/qasper has no query"),
        ("quality", ROWS["qasper"], "line 1 of scrolls/quality is not a row of quality"),
        ("quality", [ROWS["quality"][0] | {"output": "the duke"}], "not a row of quality"),
        ("contract_nli", [*ROWS["contract_nli"], *ROWS["qasper"]], "line 2 .* is not a row of contract_nli"),
        ("qmsum", ROWS["contract_nli"], "scrolls/qmsum holds rows of contract_nli"),
        ("gov_report", ROWS["quality"], "scrolls/gov_report holds rows of quality"),
    ],
)
def test_damaged_files_and_those_of_other_tasks_are_one_sentence(data, task, rows, named):
    write(data, task, rows)
    with pytest.raises(TextError, match=named) as caught:
        suite_of(f"scrolls:tasks={task}").notes()
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("scrolls:tasks=qmsum+qmsun", "There is no task 'qmsun'; tasks are gov_report"),
        ("scrolls:tasks=qmsum+qmsum", "twice"),
        ("scrolls:prompt=chat", "zeroscrolls, scrolls"),
        ("scrolls:length=0", "1 or more"),
        ("scrolls:max_new=0", "1 or more"),
        ("scrolls:examples=-1", "0 .all. or more"),
    ],
)
def test_wrong_options_are_one_sentence(spec, named):
    with pytest.raises(SpecError, match=named):
        suite_of(spec)


def test_an_answer_of_nan_stays_nan():
    suite = suite_of("scrolls:tasks=qmsum")
    ((gold, _),) = pairs("scrolls:tasks=qmsum")
    assert math.isnan(suite.score(gold, Answer(gold.forced, (math.nan,)))["gold_nll_nats"])
