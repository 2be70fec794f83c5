"""kvmark as a model of lm-eval: found as it will be, made from arguments, and honest about what it did."""

from __future__ import annotations

import gc
import importlib.metadata
import math

import pytest
from lm_eval_help import write_model, write_rows

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

from harness.lm_eval_entry import KvmarkLM
from harness.store import Row
from models.spec import SpecError
from suites.lm_eval_bridge import loading


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("llama"))


def evaluated(lm, task: str, **options):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(loading.LOCAL_FOLDER), include_defaults=False)
    return simple_evaluate(lm, tasks=[task], task_manager=tasks, bootstrap_iters=0, **options)


def test_the_entry_point_leads_to_the_class():
    (point,) = importlib.metadata.entry_points(group="lm_eval.models", name="kvmark")
    assert point.load() is KvmarkLM


def test_results_say_in_how_many_requests_the_policy_acted(model, tmp_path, monkeypatch):
    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path)))
    of = {}
    for spec in ("transformer", "tova:budget=16", "tova:budget=500"):
        lm = KvmarkLM(spec, model=str(model), batch_size=8, device="cpu")
        assert lm.exercised_share != lm.exercised_share, "nothing was asked yet"
        of[spec] = evaluated(lm, "piqa")
    shares = [told["config"]["exercised_share"] for told in of.values()]
    assert shares == [0, 1, 0]
    config = of["tova:budget=16"]["config"]
    assert (config["requests"], config["requests_with_eviction"], config["truncated_requests"]) == (12, 12, 0)
    assert config["kvmark_spec"] == "tova:budget=16" and config["kvmark_max_length"] == 512
    assert "cache-extend" in config["scoring_mode"] and "@" in config["kvmark_weights"]
    full, ample = (of[spec]["samples"]["piqa"] for spec in ("transformer", "tova:budget=500"))
    for one, other in zip(full, ample, strict=True):
        (a,), (b,) = one["resps"][0], other["resps"][0]
        assert a == pytest.approx(b, abs=1e-3), "an ample budget is a full cache"


def test_counts_are_of_one_evaluation(model, tmp_path, monkeypatch):
    """On one object: several, one that fails, one of two kinds of requests; and no rows are kept."""
    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path)))
    lm = KvmarkLM("tova:budget=40", model=str(model), batch_size=4, max_length=60)
    before = num_rows()

    def counts(task: str, **options) -> tuple[int, int]:
        config = evaluated(lm, task, **options)["config"]
        assert config["exercised_share"] == config["requests_with_eviction"] / config["requests"]
        return config["requests"], config["truncated_requests"]

    first = counts("piqa")
    assert first[0] == 12 and first[1] > 0 and [counts("piqa"), counts("piqa")] == [first, first]
    assert counts("boolq", limit=3) == (6, 6) and counts("piqa") == first

    texts = [asked("loglikelihood_rolling", "word " * 50)] * 3
    windows = 3 * math.ceil(len(lm.tok_encode("word " * 50)) / 60)
    question = asked("generate_until", "a question", {"until": ["."], "max_gen_toks": 3})
    lm.loglikelihood_rolling(texts)
    with pytest.raises(ValueError, match="does not fit into max_length=60"):
        lm.loglikelihood([asked("loglikelihood", "a question", "a long answer " * 9)])
    lm.generate_until([question])
    assert lm.get_model_info()["requests"] == 1, "what was broken off is over"
    lm.loglikelihood_rolling(texts)
    lm.generate_until([question])
    assert lm.get_model_info()["requests"] == lm.get_model_info()["requests"] == windows + 1
    lm.loglikelihood_rolling(texts)
    lm.loglikelihood_rolling(texts[:1])
    assert lm.get_model_info()["requests"] == windows / 3, "what is asked again is another evaluation"
    assert num_rows() == before


def num_rows() -> int:
    """Rows that anything holds."""
    gc.collect()
    return sum(type(one) is Row for one in gc.get_objects())


def asked(kind: str, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(kind, {}, arguments, 0, ("made", 0, 1))


def test_what_lm_eval_cannot_do_here_is_one_sentence(model, tmp_path, monkeypatch):
    """Its cache of answers knows the text of a request, and not who was asked."""
    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path / "data")))
    lm = KvmarkLM("tova:budget=16", model=str(model))
    with pytest.raises(ValueError, match=r"use_cache .* kvmark run --suite lm_eval.* resumes[.]$"):
        evaluated(lm, "piqa", limit=1, use_cache=str(tmp_path / "answers"))
    for name in (True, "a template"):
        with pytest.raises(ValueError, match="^Chat templates are not applied here"):
            evaluated(lm, "piqa", limit=1, apply_chat_template=name)
    with pytest.raises(ValueError, match="^Chat templates are not applied here"):
        lm.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert evaluated(lm, "piqa", limit=1)["config"]["requests"] == 2


def test_arguments_as_lm_eval_splits_them(model, tmp_path, monkeypatch):
    """Split at commas: what the constructor does not know are the spec's options."""
    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path)))
    more = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    text = f"model={model},spec=tova,budget=16,prompt=bulk,max_length=40"
    lm = KvmarkLM.create_from_arg_string(text, more)
    assert evaluated(lm, "boolq", limit=2)["config"]["kvmark_spec"] == "tova:budget=16,prompt=bulk"
    assert lm.max_length == 40 and lm.truncated == 4
    other = KvmarkLM.create_from_arg_obj(
        {"model": str(model), "spec": "tova:budget=16", "prompt": "bulk"}, more
    )
    assert other.get_model_info()["kvmark_spec"] == "tova:budget=16,prompt=bulk"


def test_our_own_weights_speak_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path)))
    lm = KvmarkLM("window:budget=64")
    assert lm.max_length is None
    assert evaluated(lm, "lambada_openai", limit=2)["config"]["exercised_share"] == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"spec": "nova"}, "Unknown architecture 'nova'"),
        ({"budgett": 3}, "Unknown option 'budgett' of"),
        ({"batch_size": "auto"}, "batch_size must be a number"),
        ({"model": "no/such/folder"}, "There is no checkpoint"),
        ({"dtype": "fp8"}, "Unknown dtype"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(arguments, named):
    with pytest.raises(SpecError, match=named):
        KvmarkLM(**arguments)
