"""A small quickstart as a new user runs it, and what it says about its figures."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.config import validate_config
from mtrec_ray.jobs.quickstart import QuickstartResult, quickstart
from mtrec_ray.jobs.quickstart_config import PAPER_A, QuickstartConfig, make_steps
from mtrec_ray.jobs.quickstart_summary import audit_sentences, gain_sentences, leakage_table

TINY = {
    "source": {"users": 1500, "territories": 4, "titles": 60, "user_width": 16, "title_width": 16},
    "train": {"model": {"d": 16}, "optim": {"epochs": 1}},
    "evaluate": {"num_bootstrap": 20, "references": False},
    "backbone": {"optim": {"epochs": 1, "evaluate_every": 1}, "sequences": {"audit_fraction": 0.4}},
    "eliminators": {"combinations": "gender"},
    "audit": {"num_permutations": 2},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> QuickstartResult:
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("init", "put", "remote", "get", "wait"):
            patch.setattr(ray, name, None)  # another test's cluster may run
        return quickstart(validate_config(QuickstartConfig, TINY | {"out": str(folder)}))


def printed(result: QuickstartResult) -> str:
    console = Console(file=io.StringIO(), width=80, markup=False)
    for table in result.tables():
        console.print(table)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_everything_is_there_without_ray(done):
    assert done.audit is not None
    assert Bundle.open(str(done.bundle)).manifest.audit["gender"]["gender"].auc.value > 0
    assert {"evaluation", "audit"} == done.parts.keys()
    assert done.gains.report.variants == PAPER_A


def test_it_prints_within_80_columns_and_ends_with_what_to_do_next(done):
    text = printed(done)
    assert max(map(len, text.splitlines())) <= 80
    assert "[bold]" not in text
    words = " ".join(text.split())
    assert f"mtrec serve {done.bundle}" in words.replace(" /", " /")
    assert words.endswith("mtrec quickstart parquet --config lake.yaml")


def test_gain_sentences_hold_the_figures_of_the_report(done):
    report, sentences = done.gains.report, gain_sentences(done.gains.report, done.about)
    assert [sentence.partition(":")[0] for sentence in sentences] == PAPER_A[1:]
    for sentence, variant in zip(sentences, PAPER_A[1:], strict=True):
        gains = report.intervals("pr_auc", variant, over="baseline")
        pooled, macro = re.findall(r"([+-][\d.]+)% \(([^)]*)\)", sentence)
        for (value, bounds), gain in ((pooled, gains["all"]), (macro, gains["mean"])):
            assert value == f"{gain.value:+.1f}"
            if gain.low == gain.low:
                assert bounds.startswith(f"{gain.low:+.1f} to {gain.high:+.1f}")
                assert ("which is noise" in bounds) == (gain.low <= 0 <= gain.high)
        assert sentence.endswith("compared with baseline (one seed, planted data).")


def document(of_backbone: float, hidden: float) -> dict[str, Any]:
    def leakage(value: float) -> dict[str, Any]:
        return {"vectors": {"gender": {"auc": {"value": value, "null_high": 0.53}}}}

    change = {"value": -1.25, "low": -2.0, "high": -0.5}
    return {
        "num_audit_users": 1234,
        "combinations": {
            "none": {"hides": [], "leakage": leakage(of_backbone), "accuracy": {}},
            "gender": {"hides": ["gender"], "leakage": leakage(hidden), "accuracy": {"full_ndcg_change": change}},
        },
    }


@pytest.mark.parametrize(
    ("hidden", "verdict", "mark"), [(0.53, "hidden", "*.530 (.530)"), (0.531, "not hidden", "*!.531 (.530)")]
)
def test_an_attribute_is_called_hidden_inside_its_null(hidden, verdict, mark):
    found = document(0.66, hidden)
    assert audit_sentences(found, "three seeds") == [
        f"gender: attackers read it with AUC 0.66 from the backbone, with 0.53 when it is ignored ({verdict}: labels "
        "drawn at random reach 0.53), for -1.2% of NDCG@10 (-2.0 to -0.5; three seeds)."
    ]
    table = leakage_table(found)
    assert str(table.title) == "What attackers read from vectors of 1,234 users that no eliminator saw"
    assert [list(column.cells) for column in table.columns] == [
        ["backbone", "gender"],
        ["!.660 (.530)", mark],
        ["", "-1.2"],
    ]


def test_what_was_never_read_is_not_called_hidden():
    (sentence,) = audit_sentences(document(0.52, 0.51), "one seed")
    assert "when it is ignored (not told from chance before either: " in sentence


class TestPresets:
    def steps(self, **settings: Any):
        config = validate_config(QuickstartConfig, settings)
        return config, make_steps(config)

    def test_the_small_one_is_paper_a_and_closed_form_maps_in_this_process(self):
        config, steps = self.steps()
        assert (steps.in_process, config.variants, steps.eliminators.method) == (True, PAPER_A, "closed_form")
        assert steps.build.source.users == 12_000  # pyright: ignore[reportAttributeAccessIssue]

    def test_the_full_one_has_more_variants_and_trained_eliminators_on_ray(self):
        config, steps = self.steps(full=True)
        assert (steps.in_process, len(config.variants), steps.eliminators.method) == (False, 4, "eliminator")
        assert steps.build.source.users == 20_000  # pyright: ignore[reportAttributeAccessIssue]

    def test_own_settings_win(self):
        config, steps = self.steps(variants=["baseline"], source={"users": 500}, eliminators={"method": "pfrec"})
        assert (config.variants, steps.eliminators.method, steps.in_process) == (["baseline"], "pfrec", True)
        assert steps.build.source.users == 500  # pyright: ignore[reportAttributeAccessIssue]

    def test_workers_of_a_training_need_ray(self):
        assert not self.steps(train={"runner": {"workers": 2}})[1].in_process

    def test_real_data_runs_in_process_too(self, tmp_path):
        assert self.steps(dataset="movielens", raw=str(tmp_path))[1].in_process


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_is_not_meaningless(tmp_path: Path, seed: int):
    """The gain's interval is above zero; what leaks is hidden, inside the null.

    Gender and age leak from the backbone; occupation, planted as strongly, does with two of these seeds.
    """
    result = quickstart(validate_config(QuickstartConfig, {"out": str(tmp_path), "source": {"seed": seed}}))
    gains = result.gains.report.intervals("pr_auc", "mtl+upsampling", over="baseline")
    assert min(gains["all"].low, gains["mean"].low) > 0
    assert result.audit is not None
    leakage = result.audit.metrics.query("metric == 'auc' and inputs == 'vectors'")
    assert leakage.query("combination == 'none' and attribute != 'occupation'").leaks.all()
    single = leakage[leakage.combination == leakage.attribute]
    assert len(single) == 3
    assert not single.leaks.any()
