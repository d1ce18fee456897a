"""Batches: the highest first, one kind at a time, full ones before those that are not; and paths in turn."""

from itertools import accumulate

import pytest

from flowrl.ready import LANES, ReadyQueue, batches_of
from flowrl.recipe import load_recipe


def queue_of(*items):
    queue = ReadyQueue()
    for name, kind, height in items:
        queue.push(name, kind=kind, height=height)
    return queue


def test_the_highest_go_first_and_equals_in_their_order():
    queue = queue_of(("b", 0, 1), ("c", 0, 2), ("a", 0, 1), ("d", 0, 3))
    assert [queue.pop(3), queue.pop(3)] == [["d", "c", "a"], ["b"]]
    assert not queue


def test_kinds_never_share_a_batch_and_full_batches_come_first():
    queue = queue_of(("trunk", "exact", 9), ("a", "full", 3), ("b", "full", 2), ("c", "cached", 4))
    assert [queue.pop(2) for _ in range(3)] == [["a", "b"], ["trunk"], ["c"]]


def test_paths_wait_for_their_turn_while_enough_are_under_way():
    queue = ReadyQueue(lanes=2)
    for name, height, turn in (("late", 9, 1), ("low", 3, 0), ("high", 5, 0)):
        queue.push(name, kind=0, height=height, turn=turn)
    assert queue.pop(1) == ["high"]
    queue.push("its child", kind=0, height=4)
    assert [queue.pop(1), queue.pop(1), queue.pop(1)] == [["its child"], ["late"], ["low"]]
    assert not queue


def run(plan, num_prompts, max_batch, in_turn):
    """Sites of each batch, and leaves of each."""
    batches = list(batches_of(plan, num_prompts, max_batch, in_turn=in_turn))
    is_leaf = [not children for children in plan.children]
    return batches, [sum(is_leaf[child] for _, node in batch for child in plan.children[node]) for batch in batches]


@pytest.mark.parametrize("recipe", ["g2rpo", "mix_grpo", "dance_grpo", "flow_grpo"])
@pytest.mark.parametrize("num_prompts", [1, 3])
def test_in_turn_all_nodes_run_once_in_as_few_batches(recipe, num_prompts):
    plan = load_recipe(recipe, model="flux1_dev").plan()
    (in_turn, _), (together, _) = (run(plan, num_prompts, 12, in_turn) for in_turn in (True, False))
    assert sorted(site for batch in in_turn for site in batch) == sorted(site for batch in together for site in batch)
    assert len(in_turn) <= 1.01 * len(together)


def test_in_turn_leaves_come_during_the_whole_rollout():
    plan = load_recipe("g2rpo", model="flux1_dev").plan()
    halves = []
    for in_turn in (False, True):
        _, leaves = run(plan, 4, 12, in_turn)
        halves.append(list(accumulate(leaves))[len(leaves) // 2] / (4 * len(plan.leaves)))
    together, one_after_another = halves
    assert together < 0.1
    assert 0.35 < one_after_another < 0.65


def test_in_turn_a_prompt_ends_before_a_later_one_begins():
    """But for its first noise, which fills up a batch."""
    plan = load_recipe("dance_grpo", model="flux1_dev").plan()
    batches, _ = run(plan, 6, 12, True)
    under_way = [{p for p, node in batch if plan.depth[node]} for batch in batches]
    spans = [[n for n, prompts in enumerate(under_way) if p in prompts] for p in range(6)]
    for earlier, later in zip(spans, spans[LANES:], strict=False):
        assert max(earlier) < min(later)
