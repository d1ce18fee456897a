"""The best weights by a monitor, and the rule that ends a run: both told from rows and from what is on the disk."""

from __future__ import annotations

import json
import math

import pytest

from flowrl.monitors import (
    BEST_SCORES,
    RECORD,
    WEIGHTS_BEST,
    Best,
    first_end,
    keep_if_best,
    read_best,
    read_scores,
    reward_hacking,
)

RULE = {"monitor": "m", "reward": None, "patience": 2, "min_drop": 0.0}


def rows_of(monitor, rewards, *, every=2, reward="reward"):
    """An evaluation every second iteration from 0 on, and a reward after every iteration."""
    evaluations = [{"iteration": every * k, "test/m": value} for k, value in enumerate(monitor)]
    return evaluations + [{"iteration": 1 + i, reward: value} for i, value in enumerate(rewards)]


RISING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def test_the_monitor_falls_while_the_reward_rises():
    rows = rows_of([0.5, 0.7, 0.6, 0.5], RISING[:6])
    found = reward_hacking(rows, **RULE)
    assert found is not None
    assert found[:5] == ("m", 2, 0.7, 6, 0.5)
    assert found.reward_before == pytest.approx(0.15), "over iterations 1 and 2, up to the best"
    assert found.reward_after == pytest.approx(0.45), "over iterations 3 to 6, those of the last two evaluations"
    assert "fell from 0.7 after iteration 2 to 0.5 after iteration 6" in str(found)


@pytest.mark.parametrize(
    ("monitor", "rewards", "changes"),
    [
        ([0.5, 0.7, 0.6], RISING[:4], {}),
        ([0.5, 0.7, 0.6, 0.8], RISING[:6], {}),
        ([0.5, 0.7, 0.7, 0.6], RISING[:6], {}),
        ([0.5, 0.7, 0.6, 0.5], RISING[5::-1], {}),
        ([0.5, 0.7, 0.6, 0.5], [0.3] * 6, {}),
        ([0.5, 0.7, 0.6, 0.5], RISING[:6], {"min_drop": 0.1}),
        ([0.5, 0.7, 0.6, 0.5], RISING[:6], {"patience": 3}),
        ([0.5, 0.7, 0.6, 0.5], RISING[:6], {"reward": "other"}),
        ([0.5, 0.7, None, 0.5], RISING[:6], {}),
        ([None, None, None], RISING[:6], {}),
        ([0.5], [], {"patience": 1}),
        ([], RISING, {}),
    ],
    ids=[
        "once only",
        "recovered",
        "as good as the best",
        "reward falls too",
        "reward stays",
        "within min_drop",
        "more patience",
        "another reward",
        "one without an answer",
        "no answers",
        "before training",
        "no evaluation",
    ],
)
def test_no_reason_to_end(monitor, rewards, changes):
    assert reward_hacking(rows_of(monitor, rewards), **RULE | changes) is None


def test_a_monitor_that_falls_from_the_start_and_one_reward_of_several():
    rows = rows_of([0.7, 0.6, 0.5], RISING[:4])
    found = reward_hacking(rows, **RULE)
    assert found is not None
    assert (found.since, found.reward_before, found.reward_after) == (0, pytest.approx(0.15), pytest.approx(0.25))
    named = rows_of([0.7, 0.6, 0.5], RISING[:4], reward="reward/a")
    assert reward_hacking(named, **RULE) is None
    assert reward_hacking(named, **RULE | {"reward": "a"}) == found
    assert reward_hacking(rows_of([0.7, 0.6], RISING[:2]), **RULE | {"patience": 1}) is None, "nothing to compare with"


def test_where_a_run_would_have_ended_is_the_first_evaluation_at_which_the_rule_holds():
    rows = rows_of([0.5, 0.7, 0.6, 0.4, 0.3], RISING)
    assert [first_end(rows, **RULE | {"patience": n}).iteration for n in (1, 2, 3)] == [4, 6, 8]
    assert first_end(rows, **RULE | {"patience": 4}) is None
    assert first_end(rows, **RULE).lowest == 0.4


def test_what_is_kept_is_the_earliest_of_the_best(tmp_path):
    for iteration, value in ((0, 0.5), (2, 0.7), (4, 0.6), (6, 0.7), (8, math.nan)):
        scores = [None if math.isnan(value) else value]
        save = lambda folder, i=iteration: (folder / f"w{i}").touch()  # noqa: E731
        keep_if_best(tmp_path, Best("m", iteration, value), scores, save)
    assert read_best(tmp_path) == Best("m", 2, 0.7)
    assert {path.name for path in (tmp_path / WEIGHTS_BEST).iterdir()} == {"w2", RECORD, BEST_SCORES}
    keep_if_best(tmp_path, Best("other", 8, 0.1), [0.1], lambda folder: (folder / "w8").touch())
    assert read_best(tmp_path) == Best("other", 8, 0.1), "of another monitor it is the first"


def test_weights_that_cannot_be_written_leave_the_best_before_them(tmp_path):
    keep_if_best(tmp_path, Best("m", 0, 0.5), [0.5], lambda folder: (folder / "w").touch())

    def full(folder):
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        keep_if_best(tmp_path, Best("m", 2, 0.7), [0.7], full)
    assert read_best(tmp_path) == Best("m", 0, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS_BEST]


# ---- prompts without an answer


def test_the_best_is_told_over_the_prompts_answered_both_times(tmp_path):
    """The second evaluation loses the prompt that scores low: a higher mean, but no better."""

    def keep(iteration, scores):
        answered = [score for score in scores if score is not None]
        best = Best("m", iteration, sum(answered) / len(answered))
        return keep_if_best(tmp_path, best, scores, lambda folder: None)

    assert keep(0, [0.9, 0.5, 0.1])
    assert not keep(2, [0.9, 0.5, None])
    assert not keep(4, [0.8, 0.5, None])
    assert keep(6, [None, 0.6, 0.1]), "a lower mean, and better where both were answered"
    assert not keep(8, [1.0, None, None]), "nothing in common"
    assert read_best(tmp_path).iteration == 6
    (tmp_path / WEIGHTS_BEST / BEST_SCORES).unlink()
    assert not keep(8, [0.2, 0.2, None]), "where the scores by prompt are not kept the means are compared"


SCORES = {0: [0.9, 0.5, 0.1], 2: [0.8, 0.4, None], 4: [0.7, 0.3, None]}


def partial_rows(scores):
    """The means rise, for the prompt that scores low is lost."""
    rows = []
    for iteration, values in scores.items():
        answered = [value for value in values if value is not None]
        share = len(answered) / len(values)
        mean = sum(answered) / len(answered)
        rows.append({"iteration": iteration, "test/m": mean, "coverage/test/m": share})
    return rows + [{"iteration": 1 + i, "reward": value} for i, value in enumerate(RISING[:4])]


def test_the_rule_compares_over_the_prompts_answered_both_times():
    rows = partial_rows(SCORES)
    assert rows[1]["test/m"] > rows[0]["test/m"]
    found = reward_hacking(rows, **RULE, scores=SCORES)
    assert found is not None
    assert (found.since, found.iteration, found.prompts) == (0, 4, 2)
    assert (found.highest, found.lowest) == (pytest.approx(0.7), pytest.approx(0.5))
    assert "over the 2 prompts answered both times" in str(found)
    assert first_end(rows, **RULE, scores=SCORES) == found
    assert reward_hacking(rows, **RULE) is None, "without the scores by prompt nothing can be told"
    whole = {iteration: [*values[:2], 0.1] for iteration, values in SCORES.items()}
    assert reward_hacking(partial_rows(whole), **RULE, scores=whole).prompts is None


def test_lost_prompts_alone_are_no_fall():
    """Now the prompt that scores high is lost; what remains is as it was."""
    scores = {0: [0.9, 0.5, 0.1], 2: [None, 0.5, 0.1], 4: [None, 0.5, 0.1]}
    assert reward_hacking(partial_rows(scores), **RULE, scores=scores) is None


def test_scores_are_read_from_what_the_files_say(tmp_path):
    (tmp_path / "evaluation").mkdir()
    for name, iteration in (("before", 0), ("any", 2)):
        text = json.dumps({"iteration": iteration, "scores": {"m": [0.5, None]}, "index": [0, 1]})
        (tmp_path / "evaluation" / f"{name}.json").write_text(text)
    assert read_scores(tmp_path, "m") == {0: [0.5, None], 2: [0.5, None]}
    assert read_scores(tmp_path, "other") == {}
