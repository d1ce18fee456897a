"""Batches: the highest first, one kind at a time, full ones before those that are not."""

from flowrl.ready import ReadyQueue


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
