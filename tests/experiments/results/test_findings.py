import dataclasses

import numpy as np
import pytest
from keras_invdrop.experiments.paper.claims import CLAIMS
from keras_invdrop.experiments.paper.tables import ROWS
from keras_invdrop.experiments.results.findings import SELECTED
from keras_invdrop.experiments.results.findings import findings
from keras_invdrop.experiments.results.records import packed
from keras_invdrop.experiments.runners.search import SPACE

BETTER = (
    "Invariant dropout makes fewer errors than standard dropout, "
    "inverted encoding"
)
SAME = "Invariant dropout makes as many errors on both encodings"
NEGATIVE = (
    "Beta correlates negatively with the mean activity, input, "
    "inverted encoding"
)


@pytest.fixture
def made(result):
    """A function that makes the result of a row from a seed and a figure."""

    def make(row, seed, test, recipe=None, **changes):
        row = ROWS[row]
        changed = recipe or {}
        calibrated = changed.get("calibrated", False)
        recipe = dataclasses.asdict(row.trained(calibrated)) | changed
        return dataclasses.replace(
            result,
            row=row.id,
            dropout=row.method,
            encoding=row.encoding,
            unit=row.unit,
            seed=seed,
            test=test,
            recipe=recipe,
            **changes,
        )

    return make


def pairs(made, differences, **changes):
    """Standard dropout, and invariant dropout that is better by a given gap."""
    for seed, difference in enumerate(differences):
        yield made("table2/inverted/standard", seed, 3.0 + seed, **changes)
        test = 3.0 + seed - difference
        yield made("table2/inverted/invariant", seed, test, **changes)


def found(results, text):
    return [each for each in findings(results) if each.claim.text == text]


def test_the_settings_of_a_search_do_not_separate_rows():
    assert set(SELECTED) == set(SPACE) - {"beta_decay"}


def test_a_finding_equals_itself_before_its_p_is_corrected(made):
    (finding,) = found(pairs(made, (0.2, 0.3)), BETTER)
    unknown = dataclasses.replace(finding, corrected=float("nan"))
    assert unknown == dataclasses.replace(finding, corrected=float("nan"))
    assert unknown == dataclasses.replace(finding, corrected=0.5)


def test_every_claim_is_about_rows_that_are_there():
    for claim in CLAIMS:
        for one, other in claim.pairs:
            assert one.removesuffix("+calibrated") in ROWS
            if claim.kind == "negative":
                assert other.endswith("_dropout")
            else:
                assert other.removesuffix("+calibrated") in ROWS
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)
    # Every table of the paper has claims.
    tables = {row.split("/")[0] for claim in CLAIMS for row, _ in claim.pairs}
    assert tables == {f"table{number}" for number in range(2, 7)}


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.5, 0.6, 0.7], "holds"),
        ([-0.5, -0.6, -0.7], "does not hold"),
        ([0.5, -0.6, 0.7], "undecided"),
        ([0.31, 0.5, 0.69], "holds"),  # p = 0.045
        ([0.288, 0.5, 0.712], "undecided"),  # p = 0.055
        ([0.5], "undecided"),
        ([0.5, 0.5], "undecided"),  # which says nothing of how they vary
    ],
)
def test_better(made, differences, verdict):
    (finding,) = found(pairs(made, differences), BETTER)
    assert finding.verdict == verdict
    assert finding.values == pytest.approx(differences)
    assert finding.unit == "points"
    assert len(finding.results) == 2 * len(differences)


def test_the_interval_is_that_of_the_paired_differences(made):
    # The spread of the seeds is much larger.
    (finding,) = found(pairs(made, [0.5, 0.6, 0.7]), BETTER)
    low, high = finding.inference.interval
    assert finding.inference.mean == pytest.approx(0.6)
    # Student's t with 2 degrees of freedom, 4.3027; s = 0.1.
    half = 4.3027 * 0.1 / 3**0.5
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), rel=1e-4)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.01, -0.01, 0.0], "holds"),
        ([0.3, -0.2, 0.1], "undecided"),  # too wide
        ([0.05, 0.051, 0.049], "holds"),  # not 0, and less than the margin
        ([0.2, 0.201, 0.199], "does not hold"),
        ([0.09, 0.091, 0.089], "holds"),
        ([0.11, 0.111, 0.109], "does not hold"),
    ],
)
def test_as_many(made, differences, verdict):
    results = [
        made(f"table2/{encoding}/invariant", seed, test)
        for seed, difference in enumerate(differences)
        for encoding, test in (
            ("original", 1.5 + seed),
            ("inverted", 1.5 + seed + difference),
        )
    ]
    (finding,) = found(results, SAME)
    assert finding.verdict == verdict
    # With calibration this claim holds by construction, and no training run can
    # test it.
    calibrated = {"calibrated": True}
    assert not [
        each
        for each in findings(
            made(f"table2/{encoding}/invariant", seed, 1.0, calibrated)
            for seed in range(3)
            for encoding in ("original", "inverted")
        )
        if each.claim.kind == "same"
    ]


@pytest.mark.parametrize(
    ("correlations", "verdict"),
    [
        ([-0.9, -0.8, -0.7], "holds"),
        ([0.9, 0.8, 0.7], "does not hold"),
        ([-0.9, 0.9, None], "undecided"),
    ],
)
def test_correlations(made, correlations, verdict):
    results = [
        made(
            "table2/inverted/invariant",
            seed,
            1.0,
            correlations={"input_dropout": r},
        )
        for seed, r in enumerate(correlations)
    ]
    (finding,) = found(results, NEGATIVE)
    assert finding.verdict == verdict
    assert finding.unit == "r"
    assert finding.values == [r for r in correlations if r is not None]


def test_only_the_same_seed_under_the_same_conditions_is_compared(made):
    standard = made("table2/inverted/standard", 0, 3.0)
    for change in (
        {"seed": 1},
        {"backend": "torch"},
        {"width": 0.5},
        {"training_examples": 10},
        {"limit_train": 4000},
        {"recipe": {**standard.recipe, "epochs": 7}},
    ):
        other = made("table2/inverted/invariant", 0, 2.0)
        assert found([standard, other], BETTER)
        other = dataclasses.replace(other, **change)
        assert not found([standard, other], BETTER)


def test_each_decay_of_beta_is_compared_with_what_has_none(made):
    results = [
        made("table2/inverted/standard", 0, 3.0),
        made("table2/inverted/invariant", 0, 2.0),
        made("table2/inverted/invariant", 0, 3.5, {"beta_decay": 0.1}),
    ]
    without, decayed = found(results, BETTER)
    assert without.values == [1.0]
    assert decayed.values == [-0.5]
    # A method without beta has the same result for each decay: count it once.
    results.append(made("table2/original/standard", 0, 1.0))
    assert len(found(results, "Standard dropout makes more errors on the "
                     "inverted encoding")) == 1  # fmt: skip
    assert without.conditions == "3 epochs, jax"
    assert decayed.conditions == "3 epochs, beta_decay 0.1, jax"


def test_more_code_quality_is_better_over_all_partitions(made):
    results = [
        made(
            f"table5/{i}/{method}", 0, test + i, training_examples=2440 + i % 2
        )
        for i in range(1, 7)
        for method, test in (
            ("none", 400.0),
            ("standard", 450.0),
            ("invariant", 470.0 + i),
        )
    ]
    (dropout,) = found(
        results, "Standard dropout has more code quality than none"
    )
    assert dropout.values == [50.0] * 6
    assert dropout.unit == "bits"
    (invariant,) = found(
        results, "Invariant dropout has more code quality than standard dropout"
    )
    assert invariant.values == [21.0, 22.0, 23.0, 24.0, 25.0, 26.0]
    assert invariant.verdict == "holds"
    # Seeds of a partition share their examples and count once.
    results += [
        dataclasses.replace(each, seed=1, test=each.test + shift)
        for each, shift in zip(results, [0, 0, 2] * 6, strict=True)
    ]
    (invariant,) = found(results, invariant.claim.text)
    assert invariant.values == [22.0, 23.0, 24.0, 25.0, 26.0, 27.0]
    assert len(invariant.results) == 2 * 2 * 6
    # Fewer examples make a different condition.
    few = [dataclasses.replace(each, limit_train=50) for each in results[:3]]
    assert len(found([*results, *few], invariant.claim.text)) == 2


def test_settings_selected_for_a_row_do_not_keep_it_from_being_compared(made):
    claim = "Standard dropout makes more errors on the inverted encoding"
    ids = [f"table2/{name}/standard" for name in ("original", "inverted")]
    assert len({ROWS[row].recipe.learning_rate for row in ids}) == 2
    own = [
        made(row, seed, test + seed)
        for row, test in zip(ids, (1.0, 2.5), strict=True)
        for seed in (0, 1)
    ]
    (finding,) = found(own, claim)
    assert finding.values == [1.5, 1.5]
    # Results with other settings are compared only among themselves.
    other = made(ids[0], 2, 1.0, {"max_norm": 3.0})
    (finding,) = found([*own, other, made(ids[1], 2, 9.0)], claim)
    assert finding.values == [1.5, 1.5]
    same = made(ids[1], 2, 9.0, other.recipe)
    _, finding = found([*own, other, same], claim)
    assert finding.values == [8.0]


def test_claims_are_corrected_together(made):
    # Five claims: p values of three pairs each, by hand below.
    results = [
        made(f"table2/inverted/{method}", seed, test + seed + spread * seed)
        for method, test, spread in (
            ("invariant", 1.0, 0.0),
            ("standard", 2.0, 0.01),
            ("running_average", 2.0, 0.1),
            ("invariant_input", 2.0, 2.0),
            ("invariant_hidden", 2.0, 0.03),
        )
        for seed in range(3)
    ]
    together = findings(results)
    assert len(together) == 5
    ps = sorted(each.inference.p for each in together)
    # Holm: the smallest times 5, the next times 4 ..., never below one before.
    expected = np.maximum.accumulate(np.array(ps) * [5, 4, 3, 2, 1])
    corrected = sorted(each.corrected for each in together)
    assert corrected == pytest.approx([min(p, 1) for p in expected])
    assert ps[0] < 0.05 < corrected[-1]
    for each in together:
        assert (each.verdict == "holds") == (each.corrected < 0.05)


def wrong(indices):
    examples = np.zeros(1000, bool)
    examples[indices] = True
    return packed(examples)


def test_examples_may_leave_open_what_seeds_decide(made):
    # With each seed, two of 1,000 examples that were wrong become right, and
    # one that was right becomes wrong: a difference that chance can explain.
    one_for_all = [
        made(f"table2/inverted/{method}", seed, test, wrong=wrong(indices))
        for seed in range(4)
        for method, indices, test in (
            ("standard", [1, 2, 10 + seed], 0.3 + seed / 1000),
            ("invariant", [5, 10 + seed], 0.2),
        )
    ]
    (finding,) = found(one_for_all, BETTER)
    assert finding.corrected < 0.05
    low, high = finding.interval_with_examples
    assert low < 0 < high
    assert finding.verdict == "undecided"
    # Forty examples instead of two become right.
    many = [
        dataclasses.replace(each, wrong=wrong(range(50, 90)))
        if each.dropout == "standard"
        else each
        for each in one_for_all
    ]
    (finding,) = found(many, BETTER)
    low, high = finding.interval_with_examples
    assert 0 < low < 3.8 < high
    assert finding.verdict == "holds"
    # If the wrong examples are unknown, only the seeds count.
    unknown = [dataclasses.replace(each, wrong=None) for each in many]
    (finding,) = found(unknown, BETTER)
    assert finding.interval_with_examples is None
    assert finding.verdict == "holds"


@pytest.mark.parametrize(
    ("difference", "of_original", "of_inverted", "verdict"),
    [
        (0.01, [1], [1], "holds"),
        # Five examples for five others: up to 0.6 points by chance.
        (0.01, range(5), range(5, 10), "undecided"),
        (3.0, [], range(30), "does not hold"),
        (-3.0, range(30), [], "does not hold"),
    ],
)
def test_examples_of_as_many_errors(
    made, difference, of_original, of_inverted, verdict
):
    results = [
        made(f"table2/{encoding}/invariant", seed, test, wrong=wrong([*which]))
        for seed in range(4)
        for encoding, which, test in (
            ("original", of_original, 5.0),
            ("inverted", of_inverted, 5.0 + difference + seed / 1000),
        )
    ]
    (finding,) = found(results, SAME)
    assert finding.corrected < 0.05
    assert finding.verdict == verdict


def test_examples_that_contradict_a_claim(made):
    results = [
        made(f"table2/inverted/{method}", seed, test, wrong=wrong(which))
        for seed in range(4)
        for method, which, test in (
            ("standard", [1], 0.1),
            ("invariant", [*range(40)], 4.0 + seed / 1000),
        )
    ]
    (finding,) = found(results, BETTER)
    assert finding.verdict == "does not hold"


def test_rounding_is_no_variation(made):
    # In binary 1.3 - 1.0 and 2.3 - 2.0 differ.
    results = [
        made(f"table2/inverted/{method}", seed, test)
        for seed, tests in enumerate([(1.3, 1.0), (2.3, 2.0)])
        for method, test in zip(("standard", "invariant"), tests, strict=True)
    ]
    (finding,) = found(results, BETTER)
    assert np.isnan(finding.inference.p)
    assert finding.verdict == "undecided"


def test_the_last_of_two_results_of_a_seed_counts(made):
    again = made("table2/inverted/standard", 0, 3.5)
    (finding,) = found([*pairs(made, (0.2, 0.3)), again], BETTER)
    assert finding.values == pytest.approx([0.7, 0.3])


def test_both_settings_and_searches_are_said(made, monkeypatch):
    # A row that no search has selected settings for, and that reuses another's.
    name = "table2/inverted/invariant_input"
    recipe = ROWS["table2/inverted/invariant"].recipe
    reusing = dataclasses.replace(ROWS[name], recipe=recipe, selection=None)
    monkeypatch.setitem(ROWS, name, reusing)
    results = [
        made("table2/inverted/standard", 0, 3.0),
        made("table2/inverted/invariant", 0, 2.0),
        made("table2/inverted/invariant", 0, 1.0, {"calibrated": True}),
        made("table2/inverted/invariant_input", 0, 2.5),
    ]
    standard, invariant, _, on_input = (ROWS[each.row] for each in results)
    (finding,) = found(results, BETTER)
    assert finding.searches == [invariant.selection, standard.selection]
    assert finding.settings == [
        "learning_rate 0.039, max_norm 1.0, "
        "initial_stddev (0.01, 0.01, 0.0), input_rate 0.25, hidden_rate 0.4",
        "learning_rate 0.002, max_norm (None, 4.5, 4.5), "
        "initial_stddev None, input_rate 0.1, hidden_rate 0.5",
    ]
    (finding,) = found(
        results,
        "Calibrated invariant dropout makes fewer errors than standard "
        "dropout, inverted encoding",
    )
    first, second = finding.settings
    assert first.startswith("learning_rate 0.016, max_norm 2.0, ")
    assert second.startswith("learning_rate 0.002, max_norm (None, 4.5, 4.5), ")
    (finding,) = found(
        results, "... than with beta on the input only, inverted encoding"
    )
    assert finding.searches == [invariant.selection, None]
    assert on_input.selection is None
    assert finding.settings == ["", ""]
