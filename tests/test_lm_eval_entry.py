"""kvmark as a model of lm-eval: found as it will be, made from arguments, and honest about what it did."""

from __future__ import annotations

import importlib.metadata

import pytest
from lm_eval_help import write_model, write_rows

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

from harness.lm_eval_entry import KvmarkLM
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
