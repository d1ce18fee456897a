"""The plan: published costs, interning, and the invariants that hold for any grid, group, window and Lambda set."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl.continuations.compressed import Compressed
from flowrl.continuations.strided import Strided
from flowrl.plan import Plan, compile_plan
from flowrl.ready import batches_of
from flowrl.schedules.all_steps import AllSteps
from flowrl.schedules.singular import Singular
from flowrl.schedules.sliding_window import SlidingWindow
from flowrl.sigmas import Grid
from flowrl.types import Arm, Path

T16 = Grid(16, 3.0)


def plan_of(schedule, continuation=None, grid=T16, group=12, iteration=0, iterations=300) -> Plan:
    arms = schedule.arms(num_steps=grid.num_steps, group=group, iteration=iteration, iterations=iterations, seed=0)
    return compile_plan(grid, arms, (continuation or Strided()).paths)


@pytest.mark.parametrize(
    ("schedule", "continuation", "iteration", "forwards"),
    [
        (Singular(), Strided(strides=(1, 2, 3)), 0, 1700),
        (Singular(), Strided(strides=(1, 2, 3), grid="published_keep"), 0, 1820),
        (Singular(), Strided(strides=(1, 2, 3), grid="paper"), 0, 1904),
        (Singular(), Strided(strides=(1, 2)), 0, 1496),
        (Singular(), Strided(), 0, 1112),
        (AllSteps(), Strided(), 0, 181),
        (AllSteps(roots="own"), Strided(), 0, 192),
        (SlidingWindow(width=4), Strided(), 0, 181),
        (SlidingWindow(width=4), Strided(), 4 * 25, 137),
        (SlidingWindow(width=4), Strided(), 8 * 25, 93),
        (SlidingWindow(width=4), Strided(), 11 * 25, 60),
    ],
)
def test_tree_costs_what_the_analysis_says(schedule, continuation, iteration, forwards):
    assert plan_of(schedule, continuation, iteration=iteration).num_forwards == forwards


@pytest.mark.parametrize(
    ("schedule", "actions", "decisions"),
    [(Singular(), 96, 8), (AllSteps(), 180, 169), (SlidingWindow(width=4), 48, 37), (AllSteps(roots="own"), 180, 180)],
)
def test_actions_and_decisions(schedule, actions, decisions):
    plan = plan_of(schedule)
    assert (len(plan.actions), len(plan.decisions)) == (actions, decisions)


def test_noise_at_the_last_step_is_drawn_but_never_an_action():
    plan = plan_of(AllSteps(last="sde", roots="own"))
    assert sum(step == 15 for step in plan.step) == 12
    assert {plan.step[n] for n in plan.actions} == set(range(15))


def test_arms_that_draw_the_same_noise_share_their_nodes():
    one = compile_plan(T16, [Arm({0: 3})], Strided().paths)
    two = compile_plan(T16, [Arm({0: 3}), Arm({0: 3, 1: 1})], Strided().paths)
    assert {k for k in two.noise_key if len(k) == 2} == {k for k in one.noise_key if len(k) == 2}


def test_peer_group_of_one_is_an_error():
    plan = plan_of(AllSteps(roots="own"))
    assert len(set(plan.peers("step"))) == 15
    with pytest.raises(ValueError, match="no peers"):
        plan.peers("parent")


def test_pure_ode_plan_is_legal():
    plan = compile_plan(T16, [Arm({})], Strided().paths)
    assert (plan.num_forwards, plan.actions, len(plan.leaves)) == (16, (), 1)


@pytest.mark.parametrize(
    ("arm", "path"),
    [(Arm({16: 2}), None), (Arm({0: 0}), None), (Arm({0: 2}, roots=0), None), (Arm({0: 2}), Path((0.5, 0.0)))],
)
def test_what_does_not_fit_the_grid_is_refused(arm, path):
    with pytest.raises(ValueError, match=r"grid|1 or more"):
        compile_plan(T16, [arm], Strided().paths if path is None else lambda grid, start: [path])


@st.composite
def plans(draw) -> Plan:
    grid = Grid(draw(st.integers(3, 14)), draw(st.sampled_from([1.0, 3.0])))
    group = draw(st.integers(2, 5))
    schedule = draw(
        st.one_of(
            st.just(AllSteps()),
            st.just(AllSteps(roots="own", last="sde")),
            st.integers(1, grid.num_steps - 1).map(lambda w: SlidingWindow(width=w)),
            st.sets(st.integers(0, grid.num_steps - 2), min_size=1).map(lambda s: Singular(steps=tuple(s))),
        )
    )
    strides = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)))
    kind = draw(st.sampled_from(["published", "published_keep", "paper", "compressed"]))
    continuation = Compressed() if kind == "compressed" else Strided(strides=strides, grid=kind)
    iteration = draw(st.integers(0, 299))
    return plan_of(schedule, continuation, grid, group, iteration)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_invariants(plan):
    nodes = range(len(plan.parent))
    assert all(plan.parent[n] < n for n in nodes)
    assert all(plan.sigma[n] < plan.sigma[plan.parent[n]] for n in nodes if plan.parent[n] >= 0)
    keys = [(plan.parent[n], plan.sigma[n], plan.step[n], plan.noise_key[n], plan.history[n]) for n in nodes]
    assert len(set(keys)) == len(keys), "a node exists once"
    assert all(plan.sigma[leaf] == 0 and not plan.children[leaf] for leaf in plan.leaves)
    assert all(plan.children[n] or n in plan.leaves for n in nodes), "nothing is computed in vain"
    assert sum(map(len, plan.waves)) == plan.num_forwards <= plan.forwards_alone
    assert all(columns for per_stream in plan.leaves_below for columns in per_stream), (
        "every action earns in each stream"
    )
    histories = [(n, h) for n, h in enumerate(plan.history) if h >= 0]
    assert all(h in set(plan.ancestry(plan.parent[n])) - {plan.parent[n]} for n, h in histories)


def one_prompts_batches(plan, max_batch):
    return [[node for _, node in batch] for batch in batches_of(plan, 1, max_batch)]


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(1, 40))
def test_batches_run_every_internal_node_once_after_its_parent(plan, max_batch):
    batches = one_prompts_batches(plan, max_batch)
    order = [node for batch in batches for node in batch]
    place = {node: i for i, batch in enumerate(batches) for node in batch}
    assert sorted(order) == [n for n in range(len(plan.parent)) if plan.children[n]]
    assert all(place[plan.parent[n]] < place[n] for n in order if plan.parent[n] >= 0)
    if max_batch >= plan.num_forwards:
        assert len(batches) == len(plan.waves)


def with_approximation(plan, every=None, *, extrapolate=False) -> Plan:
    return replace(plan, approximate=True, reuse_every=every, extrapolate=extrapolate)


def test_continuation_nodes_of_a_small_forest():
    plan = compile_plan(Grid(4), [Arm({0: 2}), Arm({1: 2})], Strided().paths)
    steps = {n: step for n, step in enumerate(plan.continuation_step) if step >= 0}
    below_first = [n for n in steps if len(plan.noise_key[n]) == 2 and plan.noise_key[n][1][0] == 0]
    assert len(steps) == 2 * 3 + 2 * 2
    assert sorted(steps[n] for n in below_first) == [0, 0, 1, 1, 2, 2]
    assert with_approximation(plan).forwards == (2, 10, 0)
    assert with_approximation(plan, 2).forwards == (2, 8, 2), "the first and the last step of a path run in full"
    longer = compile_plan(Grid(8), [Arm({0: 2})], Strided().paths)  # continuations of 7 steps
    by_step = {longer.continuation_step[n]: kind for n, kind in enumerate(with_approximation(longer, 2).kind)}
    assert [by_step[step] for step in range(7)] == ["full", "cached"] * 3 + ["full"]
    by_step = {longer.continuation_step[n]: kind for n, kind in enumerate(with_approximation(longer, 3).kind)}
    assert [by_step[step] for step in range(7)] == ["full", "cached", "cached"] * 2 + ["full"]
    assert plan.forwards == (12, 0, 0)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_what_enters_a_log_prob_is_never_approximated(plan):
    approximated = {n for n, kind in enumerate(with_approximation(plan, 2).kind) if kind != "exact"}
    for action in plan.actions:
        above = set(plan.ancestry(plan.parent[action]))
        assert not above & approximated, "decisions, the prefix, and all between two actions of a path are exact"
    for node in approximated:
        assert plan.children[node]
        assert set(plan.ancestry(node)) & set(plan.actions), "before the first action all is exact"
    internal = {n for n, children in enumerate(plan.children) if children}
    exact = internal - approximated
    assert exact == {n for action in plan.actions for n in plan.ancestry(plan.parent[action])} or not plan.actions


@settings(max_examples=60, deadline=None)
@given(plans(), st.sampled_from([None, 2, 3]), st.booleans(), st.integers(1, 9))
def test_residuals_come_from_the_nearest_full_forwards(plan, every, extrapolate, max_batch):
    plan = with_approximation(plan, every, extrapolate=extrapolate)
    for node, sources in enumerate(plan.residuals_of):
        assert bool(sources) == (plan.kind[node] == "cached")
        if sources:
            in_full = [n for n in plan.ancestry(plan.parent[node]) if plan.kind[n] == "full"]
            assert list(sources) == in_full[: 1 + extrapolate]
            assert 0 < plan.continuation_step[node] - plan.continuation_step[sources[0]] < every
            assert plan.height[node] > 1, "the last step of a path runs in full"
    assert sum(plan.forwards) == plan.num_forwards
    assert sum(plan.residual_uses.values()) == sum(map(len, plan.residuals_of)) >= plan.forwards.cached
    batches = one_prompts_batches(plan, max_batch)
    assert all(len({plan.kind[n] for n in batch}) == 1 for batch in batches)
    assert sorted(n for batch in batches for n in batch) == [n for n, children in enumerate(plan.children) if children]
